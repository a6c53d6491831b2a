"""What DeepSpeed keeps on a rank, to the byte, in closed form: weights, masters, moments, buffers.

N ranks, P parameters of which the i-th has p_i elements, w bytes per weight (4 in fp32, 2 in bf16 and fp16).
Between two steps a rank holds (deepspeed 0.19, runtime/zero/stage_1_and_2.py and stage3.py):

    stage  weights       fp32 masters   Adam's moments   EMA       gradients     buckets
    0      w P           -              8 P              4 P       -             -
    1, 2   w F           4 F / N        8 F / N          4 F / N   -             -
    3      w S + w L     4 S            8 S              4 S       w S           w B

F is P padded to a multiple of 2 N (NCCL wants 4-byte boundaries), S the sum of ceil(p_i / N), L the elements
of the small parameters that stay gathered (each padded to a multiple of N), B ``reduce_bucket_size``. Adam
adds a 4-byte step count for each tensor that it steps on. fp32 masters are kept even in fp32; under ZeRO-0
bf16 and fp16 are autocast's, over fp32 weights (w is 4). What Muon keeps instead of Adam's
moments is in ``muon``. The average of the weights (EMA) is ours: each rank
averages what it owns of the masters, once more for each of ``ema.posthoc``.

An offloaded optimizer's masters, moments and EMA are on the host, with an fp32 gradient of their size and
DeepSpeed's buffers for what goes to and fro. Offloaded parameters (stage 3) leave w L of the weights' row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffcore.config.buckets import bucket_of, divided
from diffcore.config.deepspeed_json import settings, sums_simply
from diffcore.config.tree import Config

WORDS = {
    "parameters": "parameters",
    "masters": "fp32 masters",
    "optimizer": "Adam's moments",
    "gradients": "gradients",
    "ema": "EMA",
    "activations": "activations",
    "buckets": "buckets",
    "temporary": "temporary",
    "data": "batch and buffers",
}
"""The categories, and what a reader of a report calls them."""
CATEGORIES = tuple(WORDS)
FULL = 4  # the optimizer steps in fp32


@dataclass(frozen=True)
class Sharing:
    """How the states are shared out: DeepSpeed's settings, read once, with its own defaults."""

    stage: int
    world: int
    rank: int
    itemsize: int
    accumulation: int
    offload: bool
    """The optimizer's states are on the host."""
    bucket: int
    overlap: bool
    contiguous: bool
    prefetch: int
    persist: int
    live: int
    reuse: int
    cpu: bool = False
    """A run on the CPU, over gloo: what is offloaded stays in the same memory."""
    averages: int = 1
    """Averages of the weights: ours, and those of ``ema.posthoc``."""
    offload_parameters: bool = False
    """Stage 3's partition of the weights is on the host too."""
    matrices: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    """Rows and columns of Muon's matrices, by parameter; of another optimizer none."""

    @classmethod
    def of(
        cls,
        config: Config,
        world: int,
        numels: Sequence[int],
        rank: int = 0,
        cpu: bool = False,
        matrices: Mapping[int, tuple[int, int]] | None = None,
    ) -> Sharing:
        """From the config and DeepSpeed's JSON that it names, for parameters of ``numels`` elements.

        ``matrices``: those that would be Muon's. InputError if they contradict each other.
        """
        tree = settings(config, world, numels)
        zero = tree.get("zero_optimization", {})
        overlap = zero.get("overlap_comm")
        if config.engine.zero == 0:
            overlap = sums_simply(tree)
        keys = ("offload_optimizer", "offload_param")
        offload, parameters = (zero.get(key, {}).get("device", "none") != "none" for key in keys)
        return cls(
            stage=config.engine.zero,
            world=world,
            rank=rank,
            itemsize=config.engine.arithmetic.itemsize,
            accumulation=config.batch.split(world)[1],
            offload=offload,
            bucket=bucket_of(tree, numels)
            if config.engine.zero == 0
            else int(zero.get("reduce_bucket_size", 5e8)),
            overlap=config.engine.zero == 3 if overlap is None else overlap,
            contiguous=zero.get("contiguous_gradients", True) or offload,
            prefetch=int(zero.get("stage3_prefetch_bucket_size", 5e7)),
            persist=int(zero.get("stage3_param_persistence_threshold", 1e5)),
            live=int(zero.get("stage3_max_live_parameters", 1e9)),
            reuse=int(zero.get("stage3_max_reuse_distance", 1e9)),
            cpu=cpu,
            averages=1 + len(config.ema.posthoc),
            offload_parameters=parameters,
            matrices=(matrices or {}) if config.optimizer.kind == "muon" else {},
        )

    @property
    def lifts(self) -> bool:
        """Whether a parameter is copied to the device when it is needed, even by a rank that is alone."""
        return self.offload_parameters and not self.cpu

    @property
    def gathers(self) -> bool:
        """Whether a parameter in use is a tensor of its own, and no view of stage 3's partition."""
        return self.world > 1 or self.lifts

    def flat(self, numels: Sequence[int]) -> int:
        """F: elements of the flat parameter buffer of stages 1 and 2, padding included."""
        return -(-sum(numels) // (2 * self.world)) * 2 * self.world

    def averaged(self, numels: Sequence[int]) -> list[list[int]]:
        """Parameters by bucket, in the order in which stage 0 reduces them (``engine.gradients.overlap``)."""
        last = len(numels) - 1
        return [[last - i for i in part] for part in divided(numels[::-1], self.bucket)]

    def share(self, numel: int) -> int:
        """Elements of a parameter on each rank under stage 3."""
        return -(-numel // self.world)

    def partition(self, numels: Sequence[int]) -> int:
        """Elements that this rank's optimizer steps on."""
        if self.stage == 0:
            return sum(numels)
        return self.flat(numels) // self.world if self.stage < 3 else sum(map(self.share, numels))

    def mine(self, numels: Sequence[int]) -> list[int]:
        """Parameters of which this rank's partition of the flat buffer has at least one element."""
        size, start, mine = self.partition(numels), 0, []
        for number, numel in enumerate(numels):
            if start < (self.rank + 1) * size and start + numel > self.rank * size:
                mine.append(number)
            start += numel
        return mine

    def slices(self, numels: Sequence[int]) -> list[list[tuple[int, int]]]:
        """(rank, elements) of each parameter's pieces of the flat buffer, in order."""
        size, start, slices = self.partition(numels), 0, []
        for numel in numels:
            ranks = range(start // size, (start + numel - 1) // size + 1)
            slices.append([(r, min(start + numel, (r + 1) * size) - max(start, r * size)) for r in ranks])
            start += numel
        return slices


@dataclass(frozen=True)
class Work:
    """What an optimizer keeps, and what it allocates and frees in a step."""

    kept: tuple[int, ...]
    """Bytes of each tensor that stays."""
    events: tuple[tuple[int, int], ...] = ()
    """(number, bytes), and (number, 0) where that is freed again."""


@dataclass(frozen=True)
class Block:
    """One allocation that lives from step to step."""

    category: str
    size: int
    host: bool = False


def resident(
    sharing: Sharing,
    numels: Sequence[int],
    buffers: int = 0,
    inputs: int = 0,
    optimizer: Sequence[int] | None = None,
    frozen: Sequence[int] = (),
) -> list[Block]:
    """What is there between two steps, once the optimizer has its moments, allocation by allocation.

    ``optimizer``: bytes of what it keeps; None: Adam's. ``frozen``: elements of the parameters that are not
    trained, which stage 3 shares out too.
    """
    s = sharing
    stepped = list(numels) if s.stage == 0 else [s.partition(numels)]
    blocks = []
    if s.stage == 0:
        blocks += [Block("parameters", n * s.itemsize) for n in numels]
    elif s.stage < 3:
        blocks.append(Block("parameters", s.flat(numels) * s.itemsize))
    else:
        blocks.append(Block("parameters", s.partition(numels) * s.itemsize, s.offload_parameters))
        if s.gathers:
            # Small parameters stay gathered.
            whole = [n for n in [*numels, *frozen] if n <= s.persist]
            blocks += [Block("parameters", s.share(n) * s.world * s.itemsize) for n in whole]
        blocks.append(Block("gradients", s.partition(numels) * s.itemsize, s.offload))
        if s.contiguous:
            blocks.append(Block("buckets", s.bucket * s.itemsize))
    for n in frozen:
        if s.stage < 3:
            blocks.append(Block("parameters", n * s.itemsize))
        else:
            blocks.append(Block("parameters", s.share(n) * s.itemsize, s.offload_parameters))
    if s.stage > 0:
        blocks.append(Block("masters", s.partition(numels) * 4, s.offload))
    for n in stepped:
        sizes = (n * 4, n * 4, 4) if optimizer is None else ()
        blocks += [Block("optimizer", size, s.offload) for size in sizes]
        blocks += [Block("ema", n * 4, s.offload)] * s.averages
    blocks += [Block("optimizer", size, s.offload) for size in optimizer or ()]
    if s.offload:
        blocks += _transfer(s, numels)
    if buffers + inputs:
        blocks.append(Block("data", buffers + inputs))
    return blocks


def _transfer(s: Sharing, numels: Sequence[int]) -> list[Block]:
    """What stands between the device and an offloaded optimizer, from step to step."""
    blocks = [Block("gradients", s.partition(numels) * 4, host=True)]
    if s.stage < 3:
        largest = max(numels) * s.itemsize
        blocks += [Block("buckets", s.partition(numels) * s.itemsize, host=True)]
        blocks += [Block("buckets", largest, host=True), Block("buckets", largest)]
        if s.stage == 2 and s.accumulation > 1:
            blocks += [Block("buckets", numels[i] * s.itemsize, host=True) for i in s.mine(numels)]
    return blocks


def totals(blocks: Sequence[Block], host: bool = False) -> dict[str, int]:
    """Bytes by category of what is on the device (or on the host)."""
    return {c: sum(b.size for b in blocks if b.category == c and b.host == host) for c in CATEGORIES}
