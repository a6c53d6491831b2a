"""Training under DeepSpeed beside a plain PyTorch loop: the cells, the loop, and what may lie between them.

The plain loop is one process with torch's AdamW, or a plain Muon, on the same device. It takes the ranks'
micro batches one by one and adds their gradients up in the engine's order, so that

- the first step's gradient is the engine's but for rounding in fp32 (``ROUNDING``): the same kernels saw the
  same inputs, and a sum of two numbers has no order;
- after more steps the two are at most ``FACTOR`` times as far apart as the plain loop is from itself with its
  sums in another order, the batch taken at once: the control, which follows the machine's kernels.

Training starts from weights of which none is zero (``warm``): where a network begins with zeros, some of the
gradients are rounding noise alone, and Adam's first steps follow their sign.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional

from diffcore import models
from diffcore.config import configure
from diffcore.diffusion.loss import denoising_loss
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.orthogonal import newton_schulz
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.partitions import ADAM_MOMENTS, MOMENTUM
from diffcore.engine.ranks import torch_dtype
from diffcore.runs import checkpoint
from diffcore.runs.stored.record import WEIGHTS
from diffcore.training.batches import positions_of
from shards.read import ShardReader

STEPS = 10
WARM = 20
"""Steps before those that are compared."""
CONFIG = """
run: run
seed: 3
data: {path: PACKED}
model: {kind: avatar, channels: [16, 32], attention_levels: [1], heads: 2, tau_tokens: 2}
diffusion: {schedule: cosine, timesteps: 100, target: v}
optimizer: {lr: 1.0e-3, weight_decay: 0.01}
batch: {size: 8}
engine: {gradient_clipping: 0, threads: 1}
ema: {decay: 0.9}
train: {steps: 4, log_every: 1, checkpoint_every: 2, deterministic: true}
memory: {trace: false}
sampling: {every: 100, count: 4, steps: 3}
"""
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FACTOR = 4.0
"""How many times further than the control the engine may be: both are one draw of the same rounding."""
ROUNDING = 16 * 2.0**-24
"""Relative, of a few fp32 operations: AdamW on a flat buffer and on a tensor may differ in the last place."""
MOMENTS = (*ADAM_MOMENTS, MOMENTUM)
LOSS_SCALE = 2.0**16
"""fp16's first one, in torch and in DeepSpeed; a power of two, so that it changes no digit."""


@dataclass(frozen=True)
class Sums:
    """The arithmetic of a batch: in which precision, of which micro batches, added up in which order."""

    precision: str = "fp32"
    masters: bool = True
    """Weights in ``precision`` beside fp32 masters; else fp32 weights under autocast."""
    micro: int | None = None
    """Samples of a micro batch; None: the whole batch at once."""
    ranks: int = 1
    reduce_first: bool = False
    """Every micro batch is summed over the ranks, then over the micro batches; else the other way round."""
    bias_after: bool = False
    """A linear layer adds its bias to the rounded product, as ZeRO-3's does."""


WHOLE = Sums()
"""The batch at once, on one rank."""


@dataclass(frozen=True)
class Cell:
    """A ZeRO stage in a precision."""

    zero: int
    precision: str
    micro: int
    """Samples of a rank's micro batch; the batch of 8 is micro x accumulation x ranks."""

    def __str__(self) -> str:
        return f"zero{self.zero}-{self.precision}-micro{self.micro}"

    @property
    def masters(self) -> bool:
        return self.precision == "fp32" or self.zero > 0

    def sums(self, ranks: int) -> Sums:
        """The engine's own arithmetic."""
        return Sums(self.precision, self.masters, self.micro, ranks, self.zero >= 2, self.zero == 3)


def cells(ranks: int) -> list[Cell]:
    """Every stage in fp32 with and without accumulation, in bf16, and in fp16 where it can be had."""
    most = 8 // ranks
    found = [Cell(zero, "fp32", micro) for zero in range(4) for micro in (1, most)]
    found += [Cell(zero, "bf16", most // 2) for zero in range(4)]
    return found + [Cell(zero, "fp16", most // 2) for zero in range(4 if DEVICE.type == "cuda" else 1)]


def write(
    folder: Path, data: Path, cell: Cell, steps: int, name: str = "", kind: str = "adamw", **engine: Any
) -> Path:
    """The resolved config of a cell, which trains in ``folder``/cell (or ``name``) from warm weights.

    ``kind``: of all optimizers in the folder. ``engine``: what else is set there.
    """
    small = folder / "small.yaml"
    if not small.exists():
        small.write_text(of_kind(kind).replace("PACKED", str(data)))
        warm(small)
    name = name or str(cell)
    changes = {
        "run": str(folder / name),
        "init_from": str(folder / "warm"),
        "engine": {"zero": cell.zero, "precision": cell.precision, **engine},
        "batch": {"micro": cell.micro},
        "train": {"steps": steps, "checkpoint_every": steps},
    }
    path = folder / f"{name}-{steps}.yaml"
    path.write_text(configure.load(small, changes).to_yaml())
    return path


def of_kind(kind: str) -> str:
    """``CONFIG`` with this optimizer."""
    return CONFIG.replace("optimizer: {", f"optimizer: {{kind: {kind}, ")


class PlainMuon(torch.optim.Optimizer):
    """Muon matrix by matrix on the whole parameters of ``shapes``."""

    def __init__(
        self, named: dict[str, Tensor], shapes: dict[str, tuple[int, int]], lr: float, weight_decay: float
    ) -> None:
        self.shapes = [shapes[name] for name in named]
        super().__init__(named.values(), {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        [group] = self.param_groups
        for weight, (rows, columns) in zip(group["params"], self.shapes, strict=True):
            momentum = self.state[weight].setdefault(MOMENTUM, torch.zeros_like(weight))
            momentum.lerp_(weight.grad, 1 - 0.95)
            x = torch.lerp(weight.grad, momentum, 0.95).view(rows, columns)
            squares = torch.empty(newton_schulz.SQUARES * min(rows, columns) ** 2, device=x.device)
            update = newton_schulz.orthogonalize(x, torch.empty_like(x), squares, 5)
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_(update.view_as(weight), alpha=group["lr"] * 0.2 * max(rows, columns) ** 0.5)


def warm(small: Path) -> None:
    """Weights to start from, in the folder ``warm`` beside the config: some steps from its own start."""
    (small.parent / "warm").mkdir()
    save_file(plain_loop(small, WARM)["weights"], small.parent / "warm" / "model.safetensors")


def _bias_after(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A linear layer as deepspeed.runtime.zero.linear computes it."""
    if x.dim() == 2 and bias is not None:
        return torch.addmm(bias, x, weight.t())
    product = x.matmul(weight.t())
    return product if bias is None else product + bias


@functools.cache
def plain_loop(path: Path, steps: int, sums: Sums = WHOLE, warmed: bool = False) -> dict[str, Any]:
    """The training of a config in one process without DeepSpeed: weights, EMA and Adam's moments by name,
    and the gradient's norm at each step. ``warmed``: from the weights of ``warm``.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(configure.load(path).engine.threads or threads)  # more of them add in another order
    try:
        with mock.patch.object(functional, "linear", _bias_after if sums.bias_after else functional.linear):
            return _plain_loop(path, steps, sums, warmed)
    finally:
        torch.set_num_threads(threads)


def _plain_loop(path: Path, steps: int, sums: Sums, warmed: bool) -> dict[str, Any]:
    c, dtype = configure.load(path), torch_dtype(sums.precision)
    reader, full = ShardReader(c.data.path, seed=c.seed), NoiseSchedule.of(c.diffusion)
    torch.manual_seed(c.seed)
    network = models.build(c.model, reader.schema, reader.size).to(DEVICE)
    if warmed:
        network.load_state_dict(load_file(path.parent / "warm" / "model.safetensors"))
    named = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    shapes = matrices(network) if c.optimizer.kind == "muon" else {}
    lr, decay = c.optimizer.lr, c.optimizer.weight_decay
    others = [p for name, p in named.items() if name not in shapes]
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(others, lr=lr, weight_decay=decay)]
    if shapes:
        optimizers.append(PlainMuon({name: named[name] for name in shapes}, shapes, lr, decay))
    network.to(dtype if sums.masters else torch.float32)
    ema = {name: p.detach().clone() for name, p in named.items()}
    norms: list[float] = []
    ones_T = torch.ones(c.diffusion.timesteps, device=DEVICE)
    micro, ranks = sums.micro or c.batch.size, sums.ranks
    micro_steps = range(c.batch.size // (micro * ranks))
    scale = LOSS_SCALE if sums.precision == "fp16" else 1.0

    def backward(step: int, micro_step: int, rank: int) -> None:
        mine = positions_of(step, micro_step, rank, ranks, micro, c.batch.size, reader.order.name)
        batch = reader.read(mine)
        images, schedule = to_signal(batch.images), full
        for stage in c.train.stages[::-1]:
            if step < stage.until:  # the earliest one of those
                factor = reader.size // stage.side
                of_stage = functional.avg_pool2d(to_signal(batch.images), factor)
                images, schedule = of_stage, full.shifted(factor) if stage.shift else full
        draws = Draws.on_device(
            torch.from_numpy(batch.positions).to(DEVICE),
            seed=c.seed,
            timesteps=c.diffusion.timesteps,
            label_dropout=c.diffusion.label_dropout,
            shape=images.shape[1:],
        )
        with torch.autocast(DEVICE.type, dtype, enabled=not sums.masters):
            loss = denoising_loss(
                lambda x, *rest: network(x.to(next(network.parameters()).dtype), *rest),
                *(schedule, ones_T, images.to(DEVICE), torch.from_numpy(batch.labels).to(DEVICE)),
                draws.to(DEVICE),
            ).mean()
        (loss * (scale / len(micro_steps))).backward()

    def reduced(step: int, some: Iterable[int]) -> dict[str, Tensor]:
        """Mean over the ranks of the gradients of these micro batches, which autograd adds up on each."""
        total: dict[str, Tensor] = {}
        for rank in range(ranks):
            network.zero_grad()
            for micro_step in some:
                backward(step, micro_step, rank)
            for name, p in network.named_parameters():
                if p.grad is not None:
                    share = p.grad / ranks
                    total[name] = total[name] + share if name in total else share
        return total

    for step in range(steps):
        # ZeRO-2 and 3 reduce every micro batch, the others all of them at once.
        portions = [[k] for k in micro_steps] if sums.reduce_first else [micro_steps]
        gradients = [reduced(step, portion) for portion in portions]
        for name, p in named.items():
            shares = [g[name] for g in gradients if name in g]
            p.grad = functools.reduce(torch.add, shares).float() / scale if shares else None
        norms.append(
            torch.nn.utils.get_total_norm([p.grad for p in named.values() if p.grad is not None]).item()
        )
        for optimizer in optimizers:
            optimizer.step()
        decay = min(c.ema.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(named[name])
                ema[name] = decay * ema[name] + (1 - decay) * named[name].detach()
    reader.close()
    stepped = {n: o.state[p] for n, p in named.items() for o in optimizers if p in o.state}
    return {
        "weights": {n: p.detach().cpu() for n, p in named.items()},
        "ema": {n: tensor.cpu() for n, tensor in ema.items()},
        "optimizer": {
            f"{n}.{m}": state[m].cpu() for n, state in stepped.items() for m in MOMENTS if m in state
        },
        "norms": norms,
    }


def saved(run: Path, step: int | None = None) -> dict[str, Any]:
    """The tensors that ``plain_loop`` returns, of a run's newest checkpoint, or of that of a step."""
    newest, _ = checkpoint.newest(run)
    if newest is None:
        raise FileNotFoundError(f"{run}: no checkpoint")
    folder = newest if step is None else newest.parent / f"step-{step:08d}"
    found: dict[str, Any] = {which: checkpoint.read_weights(folder, which) for which in WEIGHTS}
    found["optimizer"] = {
        f"{name}.{moment}": tensor
        for moment in MOMENTS
        for name, tensor in checkpoint.read_weights(folder, moment).items()
    }
    return found


def recorded(run: Path, step: int | None = None) -> dict[str, Any]:
    """All that ``plain_loop`` returns, of a run: ``saved`` and the gradient norms of its steps."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return saved(run, step) | {"norms": [json.loads(line)["train/gradient_norm"] for line in lines]}


def assert_same(got: dict[str, Any], wanted: dict[str, Any]) -> None:
    """What two trainings came to, as ``saved`` gives it, is the same bits."""
    assert got.keys() == wanted.keys()
    for which, tensors in wanted.items():
        assert got[which].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(got[which][name], tensor), f"{which}: {name}"


def assert_near(got: dict[str, dict[str, Tensor]], wanted: dict[str, Any], rtol: float) -> None:
    """What two trainings came to, as ``saved`` gives it, is the same but for rounding."""
    for which in ("weights", "ema", "optimizer"):
        tensors = wanted[which]
        assert got[which].keys() == tensors.keys()
        for name, tensor in tensors.items():
            apart = got[which][name] - tensor
            assert apart.norm() <= rtol * tensor.norm(), f"{which}: {name}"
            # Adam divides by the gradient's size: where that is tiny, rounding shows in single elements.
            assert apart.abs().max() <= 20 * rtol * tensor.abs().max(), f"{which}: {name}"


TINY = torch.finfo(torch.float32).tiny


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def distance(got: dict[str, Any], wanted: dict[str, Any], start: dict[str, Tensor]) -> dict[str, float]:
    """How far one training ended from another.

    ``norm``: the greatest relative difference of a step's gradient norm. ``of_the_way``: of all weights, in
    parts of the way that they went from ``start``. ``..._apart``: of the tensor that differs most, in parts
    of its norm.
    """
    way = flat(wanted["weights"]) - flat(start)
    result = {
        "norm": greatest([abs(g / w - 1) for g, w in zip(got["norms"], wanted["norms"], strict=True)]),
        "of_the_way": float((flat(got["weights"]) - flat(wanted["weights"])).norm() / way.norm()),
    }
    for which in ("weights", "ema", "optimizer"):
        if got[which].keys() != wanted[which].keys():
            raise ValueError(f"{which}: not the same tensors")
        pairs = ((got[which][name], tensor) for name, tensor in wanted[which].items())
        apart = [float((ours - theirs).norm() / theirs.norm().clamp(min=TINY)) for ours, theirs in pairs]
        result[f"{which}_apart"] = greatest(apart)
    return result


def greatest(values: list[float]) -> float:
    """NaN where one is NaN, which Python's max may pass over."""
    return float(torch.tensor(values, dtype=torch.float64).max())


def compare(folder: Path, cell: Cell, ranks: int, steps: int) -> dict[str, dict[str, float]]:
    """A cell's run against the plain loop: after one step, and after ``steps`` beside the control."""
    small, start = folder / "small.yaml", load_file(folder / "warm" / "model.safetensors")
    first, wanted = (plain_loop(small, n, cell.sums(ranks), warmed=True) for n in (1, steps))
    other = plain_loop(
        small, steps, replace(WHOLE, precision=cell.precision, masters=cell.masters), warmed=True
    )
    got = recorded(folder / str(cell))
    return {
        "first": distance(recorded(folder / str(cell), 1) | {"norms": got["norms"][:1]}, first, start),
        "end": distance(got, wanted, start),
        "control": distance(other, wanted, start),
    }


def faults(found: dict[str, dict[str, float]]) -> list[str]:
    """What of a comparison is beyond rounding, or no number; a line each."""
    # In parts of one step's way the weights' own rounding is large: they are a hundred times as long.
    first = {name: value for name, value in found["first"].items() if name != "of_the_way"}
    lines = [f"first step: {name} {value:.2e}" for name, value in first.items() if not value <= ROUNDING]
    for name, value in found.get("end", {}).items():
        bound = max(FACTOR * found["control"][name], ROUNDING)
        if not value <= bound:
            lines.append(f"end: {name} {value:.2e}, allowed {bound:.2e}")
    return lines
