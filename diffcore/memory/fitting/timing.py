"""How long a step takes, modelled: sums of work over rates, to put settings in order. Not a promise.

    step = accumulation x micro batch + communication + offload + optimizer

- A micro batch: its FLOPs at ``mfu`` of the card's dense peak, but no less than the host needs to launch its
  kernels (a roofline whose floor is the host). Checkpointing computes again: full one forward more, 4 of 3
  passes (Chen et al. 2016); selective what is cheap in FLOPs (Korthikanti et al. 2022, section 5).
- Communication: bytes that each of N ranks sends, closed forms of the ZeRO paper (Rajbhandari et al. 2020,
  section 7): with f = (N - 1) / N and P parameters 2 f P under ZeRO-0, 3 f P accumulation under ZeRO-3.
  Under ZeRO-1 and 2 DeepSpeed sums whole buckets over all ranks (``use_multi_rank_bucket_allreduce``, its
  default), where the paper scatters the sum: 3 f P, and f P (2 accumulation + 1). Over the slowest link:
  between a node's GPUs, or what a node sends to others, which a ring crosses once. Nothing overlaps.
- Offload: gradients and weights over the host's bus, and Adam over the host's memory.
- Optimizer: a rank's states through its memory, but no less than the host needs; Muon's products.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from diffbase.machine.cards import Card
from diffcore.config.precision import arithmetic

MFU = 0.18
"""Share of the peak while a GPU computes, assumed: what the avatar network alone reached on an H200 (17.7 %,
torch's layout, not compiled; docs/gpu.md)."""
LAUNCH = 10e-6
"""Seconds of the host for a kernel of forward or backward: assumed, of torch's eager mode."""
TENSOR = 170e-6
"""Seconds of the host for a parameter in the optimizer's step: 27 ms for 162 on an H200 (docs/gpu.md)."""
LINK = 0.8
"""Share of a link's rate that collectives and copies reach: assumed."""
NETWORK = 25.0
"""GB/s that a node sends to others where nobody said: one port of 200 Gb/s."""
HOST_MEMORY = 100.0
"""GB/s of a node's memory in Adam's step there, for all of its ranks: assumed."""
ADAM, EMA = 28, 12
"""Bytes an element through memory: weight, two moments and gradient in fp32 read, three of them written; the
average read and written, and the weight read."""
AGAIN = {"none": 1.0, "selective": 1.1, "full": 4 / 3}
"""Forward and backward with what is computed again, in those without."""


@dataclass(frozen=True)
class Work:
    """What a step has to do."""

    flops: float
    """Of an image, forward and backward."""
    optimizer: float
    """FLOPs of an optimizer step on all ranks together, whatever the batch is: Muon's."""
    parameters: int
    tensors: int
    """Parameters by name: what the optimizer takes one by one."""
    kernels: int
    """Launched in forward and backward of a micro batch."""


@dataclass(frozen=True)
class Layout:
    """GPUs in nodes."""

    nodes: int
    per_node: int
    network: float = NETWORK
    """GB/s in one direction that a node sends to others."""

    @property
    def world(self) -> int:
        """Ranks in all."""
        return self.nodes * self.per_node


@dataclass(frozen=True)
class Setting:
    """What ``fit`` chooses of ``engine``."""

    zero: int
    precision: str
    checkpointing: str
    offload: str


@dataclass(frozen=True)
class Times:
    """Seconds of one optimizer step, by what they are for."""

    compute: float
    communication: float
    offload: float
    optimizer: float

    @property
    def step(self) -> float:
        """All of it."""
        return self.compute + self.communication + self.offload + self.optimizer

    def scaled(self, factor: float) -> Times:
        """Each part times ``factor``."""
        return replace(self, **{field.name: factor * getattr(self, field.name) for field in fields(self)})


@dataclass(frozen=True)
class Clock:
    """The model with what is known of its rates."""

    work: Work
    card: Card
    mfu: float = MFU
    factor: float = 1.0
    """What every time is multiplied with: a run's measured step over its modelled one."""
    source: str = ""
    """Where the rates are from, in words."""

    def times(self, setting: Setting, layout: Layout, micro: int, accumulation: int) -> Times:
        """A step of ``accumulation`` micro batches of ``micro`` images on every rank."""
        return step(self.work, self.card, setting, layout, micro, accumulation, self.mfu).scaled(self.factor)


def step(
    work: Work,
    card: Card,
    setting: Setting,
    layout: Layout,
    micro: int,
    accumulation: int,
    mfu: float = MFU,
) -> Times:
    """The model; see the module's text."""
    peak = 1e12 * (card.tf32 if setting.precision == "fp32" else card.half) * mfu
    once = max(micro * work.flops / peak, work.kernels * LAUNCH) * AGAIN[setting.checkpointing]
    sent = traffic(setting, work.parameters, layout.world, accumulation)
    link = card.link if layout.nodes == 1 else min(card.link, layout.network)
    own = work.parameters / (layout.world if setting.zero else 1)
    width = arithmetic(setting.zero, setting.precision).itemsize  # type: ignore[arg-type]
    passes = accumulation * (2 if setting.offload == "parameters" else 0)
    offload, adam = 0.0, own * ADAM / (1e9 * card.bandwidth)
    if setting.offload != "none":
        crossing = own * width * (accumulation + 1 + passes)  # gradients, new weights, weights of each pass
        offload = crossing / (1e9 * LINK * card.bus)
        adam = own * ADAM / (1e9 * HOST_MEMORY / layout.per_node)
    states = max(adam + own * EMA / (1e9 * card.bandwidth), work.tensors * TENSOR)
    products = work.optimizer / layout.world / peak
    return Times(accumulation * once, sent / (1e9 * LINK * link), offload, states + products)


def traffic(setting: Setting, parameters: int, world: int, accumulation: int) -> float:
    """Bytes that one rank sends in a step of ``accumulation`` micro batches."""
    width = arithmetic(setting.zero, setting.precision).itemsize  # type: ignore[arg-type]
    times = {0: 2, 1: 3, 2: 2 * accumulation + 1, 3: 3 * accumulation}[setting.zero]
    return times * parameters * width * (world - 1) / world
