"""Twenty steps of every ZeRO stage and precision beside a plain PyTorch loop on the same batches.

    python benchmarks/numerics.py [--ranks 2] [--steps 20]

The plain loop is one process with torch's AdamW, on the same device; in bf16 it keeps fp32 master weights
as ZeRO-1 to 3 do, or uses autocast as ZeRO-0 does. fp16 is held against fp32. Prints one JSON object, for
each cell the greatest relative difference of a step's gradient norm, and how far weights, average and
moments end from the plain loop's: of the tensor that differs most in parts of its norm ("apart"), and over
all weights in parts of the way that they went ("of_the_way"). fp16 under ZeRO-1 to 3 needs a GPU and is
left out elsewhere.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor

from benchmarks import small_set
from diffcore import checkpoint, configure, models
from diffcore.batches import positions_of
from diffcore.diffusion.loss import denoising_loss
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import ADAM_MOMENTS, DTYPES
from diffcore.pictures import to_signal
from shards.read import ShardReader

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 20
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


@dataclass(frozen=True)
class Cell:
    zero: int
    precision: str
    micro: int
    """Samples of a rank's micro batch; the batch of 8 is micro x accumulation x ranks."""

    def __str__(self) -> str:
        return f"zero{self.zero}-{self.precision}-micro{self.micro}"


def cells(ranks: int) -> list[Cell]:
    """Every stage in fp32 with and without accumulation, in bf16, and in fp16 where it can be had."""
    most = 8 // ranks
    found = [Cell(zero, "fp32", micro) for zero in range(4) for micro in (1, most)]
    found += [Cell(zero, "bf16", most // 2) for zero in range(4)]
    return found + [Cell(zero, "fp16", most // 2) for zero in range(4 if DEVICE.type == "cuda" else 1)]


def write(folder: Path, data: Path, cell: Cell, steps: int) -> Path:
    """The resolved config of a cell, which trains in ``folder``/cell."""
    small = folder / "small.yaml"
    small.write_text(CONFIG.replace("PACKED", str(data)))
    changes = {
        "run": str(folder / str(cell)),
        "engine": {"zero": cell.zero, "precision": cell.precision},
        "batch": {"micro": cell.micro},
        "train": {"steps": steps, "checkpoint_every": steps},
    }
    path = folder / f"{cell}.yaml"
    path.write_text(configure.load(small, changes).to_yaml())
    return path


@functools.cache
def plain_loop(path: Path, steps: int, precision: str = "fp32", masters: bool = True) -> dict[str, Any]:
    """The training of a config in one process without DeepSpeed: weights, EMA and Adam's moments by name,
    and the gradient's norm at each step.

    ``precision`` bf16: with fp32 ``masters`` beside bf16 weights, or else under autocast.
    """
    c, dtype = configure.load(path), DTYPES[precision]
    reader, schedule = ShardReader(c.data.path, seed=c.seed), NoiseSchedule.of(c.diffusion)
    torch.manual_seed(c.seed)
    network = models.build(c.model, reader.schema, reader.size).to(DEVICE)
    named = {name: p.detach().clone().requires_grad_() for name, p in network.named_parameters()}
    optimizer = torch.optim.AdamW(named.values(), lr=c.optimizer.lr, weight_decay=c.optimizer.weight_decay)
    autocast = torch.autocast(DEVICE.type, dtype, enabled=not masters)
    network.to(dtype if masters else torch.float32)
    ema = {name: p.detach().clone() for name, p in named.items()}
    seen: list[float] = []
    ones_T = torch.ones(c.diffusion.timesteps, device=DEVICE)
    for step in range(steps):
        batch = reader.read(positions_of(step, 0, 0, 1, c.batch.size, c.batch.size))
        images = to_signal(batch.images)
        draws = Draws.at(
            batch.positions,
            seed=c.seed,
            timesteps=c.diffusion.timesteps,
            label_dropout=c.diffusion.label_dropout,
            shape=images.shape[1:],
        )
        with autocast:
            loss = denoising_loss(
                lambda x, *rest: network(x.to(next(network.parameters()).dtype), *rest),
                *(schedule, ones_T, images.to(DEVICE), torch.from_numpy(batch.labels).to(DEVICE)),
                draws.to(DEVICE),
            ).mean()
        network.zero_grad()
        loss.backward()
        for name, p in network.named_parameters():
            named[name].grad = None if p.grad is None else p.grad.float()
        seen.append(torch.nn.utils.get_total_norm([p.grad for p in named.values()]).item())
        optimizer.step()
        decay = min(c.ema.decay, (1 + step) / (10 + step))
        with torch.no_grad():
            for name, p in network.named_parameters():
                p.copy_(named[name])
                ema[name] = decay * ema[name] + (1 - decay) * named[name].detach()
    reader.close()
    stepped = {n: optimizer.state[p] for n, p in named.items() if p in optimizer.state}
    moments = {f"{n}.{m}": state[m].cpu() for n, state in stepped.items() for m in ADAM_MOMENTS}
    return {
        "weights": {n: p.detach().cpu() for n, p in named.items()},
        "ema": {n: tensor.cpu() for n, tensor in ema.items()},
        "optimizer": moments,
        "norms": seen,
    }


def saved(run: Path) -> dict[str, dict[str, Tensor]]:
    """Weights, EMA and Adam's moments of a run of diffcore/train.py, from its newest checkpoint."""
    newest, _ = checkpoint.newest(run)
    if newest is None:
        raise FileNotFoundError(f"{run}: no checkpoint")
    found = {which: checkpoint.read_weights(newest, which) for which in checkpoint.WEIGHTS}
    found["optimizer"] = {
        f"{name}.{moment}": tensor
        for moment in ADAM_MOMENTS
        for name, tensor in checkpoint.read_weights(newest, moment).items()
    }
    return found


def norms(run: Path) -> list[float]:
    """The gradient's norm at each step of it."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/gradient_norm"] for line in lines]


def flat(tensors: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensors[name].flatten() for name in sorted(tensors)])


def compare(small: Path, cell: Cell, steps: int) -> dict[str, float]:
    """A cell's run, beside ``small``, against the plain loop."""
    precision = "bf16" if cell.precision == "bf16" else "fp32"
    wanted = plain_loop(small, steps, precision, precision == "fp32" or cell.zero > 0)
    run = small.parent / str(cell)
    got, start = saved(run), plain_loop(small, 0)["weights"]
    result = {
        "norm": max(abs(g / w - 1) for g, w in zip(norms(run), wanted["norms"], strict=True)),
        "of_the_way": float(
            (flat(got["weights"]) - flat(wanted["weights"])).norm()
            / (flat(wanted["weights"]) - flat(start)).norm()
        ),
    }
    for which in ("weights", "ema", "optimizer"):
        apart = ((got[which][n] - t).norm() / t.norm() for n, t in wanted[which].items() if t.norm() > 0)
        result[f"{which}_apart"] = max(map(float, apart))
    return result


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count() or 2, choices=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=STEPS)
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_set.packed(folder / "set")
        paths = [write(folder, data, cell, a.steps) for cell in cells(a.ranks)]
        # fmt: off
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(a.ranks),
            "-m", "benchmarks.train_all", *map(str, paths),
        ]
        # fmt: on
        env = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        subprocess.run(command, cwd=REPOSITORY, env=env, check=True, stdout=sys.stderr)
        found = {str(cell): compare(folder / "small.yaml", cell, a.steps) for cell in cells(a.ranks)}
    print(json.dumps({"device": DEVICE.type, "ranks": a.ranks, "steps": a.steps, "cells": found}))


if __name__ == "__main__":
    main()
