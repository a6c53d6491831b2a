"""A step of diffcore/train.py beside the same network in a plain DistributedDataParallel loop.

    python benchmarks/engine_step.py [--config configs/ddpm-cifar10.yaml] [--ranks 2] [--batch 4] [--rounds 7]

All sides live in the same processes and take turns, ``--steps`` steps each: the plain loop (DDP where there
are two processes, fused AdamW, a fused EMA, the same reader and loss) and the training engine under each
stage of ``--zero``. A round's order turns, so that a busy moment hits every side; figures are medians over
the rounds and ratios medians of the rounds' ratios: above 1 the engine is faster than the plain loop. The
same ratio by CPU seconds says more where other work shares the cores.

Beside the steps it takes the time of what training adds to them at its defaults (``train.log_every``,
``train.checkpoint_every``): a log line, and a checkpoint with the steps that it is written beside. Prints
one JSON object. On CUDA it measures there, in bf16.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from diffcore import models
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import process_group
from diffcore.engine.ranks import World, barrier
from diffcore.runs.data import training_reader
from diffcore.training.batches import micro_batches
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.run import Training
from tests.support import small_set

ENDLESS = 10**9
"""Steps that no side comes to the end of."""


class Plain:
    """What people write: the network in DDP, fused AdamW, EMA over all parameters in one call."""

    def __init__(self, config: Config, world: World) -> None:
        self.config, self.device = config, world.device
        reader = training_reader(config)
        torch.manual_seed(config.seed)
        network = models.build(config.model, reader.schema, reader.size).to(world.device)
        network = models.prepare(network, config.engine)
        self.network = nn.parallel.DistributedDataParallel(network) if world.size > 1 else network
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=config.optimizer.lr, fused=True)
        self.ema = [p.detach().clone() for p in network.parameters()]
        self.schedule = NoiseSchedule.of(config.diffusion)
        self.weights_T = WEIGHTS[config.diffusion.loss_weight](self.schedule)
        self.batches = micro_batches(config, reader, world, 0, ENDLESS)
        self.autocast = torch.autocast(
            world.device.type, torch.bfloat16, enabled=config.engine.precision == "bf16"
        )

    def step(self) -> None:
        batch = next(self.batches)
        with self.autocast:
            loss_B = denoising_loss(
                self.network, self.schedule, self.weights_T, batch.images, batch.labels, batch.draws
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss_B.mean().backward()
        if self.config.engine.gradient_clipping:
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.engine.gradient_clipping)
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.ema, list(self.network.parameters()), 1 - self.config.ema.decay)


def timed(step: Callable[[], Any], steps: int, world: World) -> float:
    """Seconds a step, of the slowest rank."""
    return measured(step, steps, world)[0]


def measured(step: Callable[[], Any], steps: int, world: World) -> tuple[float, float]:
    """Seconds a step, of the slowest rank, and CPU seconds of this rank's."""
    barrier()
    began, cpu = time.perf_counter(), time.process_time()
    for _ in range(steps):
        step()
    if world.device.type == "cuda":
        torch.cuda.synchronize()
    used = time.process_time() - cpu
    barrier()
    return (time.perf_counter() - began) / max(steps, 1), used / max(steps, 1)


def turns(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    for turn in range(rounds):
        first = turn % len(names)
        yield [*names[first:], *names[:first]]


def work(a: argparse.Namespace) -> None:
    """One rank."""
    world = process_group.start(a.out.parent, a.threads)
    changes: dict[str, Any] = {
        "data": {"path": str(a.data)},
        "batch": {"size": a.batch, "micro": None},
        "train": {"steps": ENDLESS, "log_every": 20, "checkpoint_every": 1000},
        "memory": {"trace": False},
        "engine": {"precision": a.precision},
        "validation": {"every": None},
    }
    trainings: dict[str, Training] = {}
    plain = Plain(configure.load(a.config, changes), world)
    for zero in a.zero:
        config = configure.load(
            a.config,
            changes
            | {"engine": {"zero": zero, "precision": a.precision}, "run": str(a.data / f"zero{zero}")},
        )
        watchdog = Watchdog(config.run, world.rank, ENDLESS, config.guards)
        trainings[f"zero{zero}"] = Training(config, world, StopFlag(), watchdog).__enter__()
    steps: dict[str, Callable[[], None]] = {"plain": plain.step} | {n: t.learn for n, t in trainings.items()}
    for step in steps.values():
        timed(step, 2, world)
    for training in trainings.values():
        training.log()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
    for order in turns(list(steps), a.rounds):
        for name in order:
            if name in trainings:
                trainings[name].clock.start()
            seconds[name].append(measured(steps[name], a.steps, world))
    result: dict[str, Any] = {"plain": {"ms": 1e3 * statistics.median(wall for wall, _ in seconds["plain"])}}
    for name, training in trainings.items():
        stall = training.clock.read()
        pairs = list(zip(seconds["plain"], seconds[name], strict=True))
        result[name] = {
            "ms": 1e3 * statistics.median(wall for wall, _ in seconds[name]),
            "speed_against_plain": statistics.median(plain[0] / ours[0] for plain, ours in pairs),
            "by_cpu_seconds": statistics.median(plain[1] / ours[1] for plain, ours in pairs),
            "data_stall": stall["data"] / sum(stall.values()),
            **overhead(training, a.rounds, a.steps, world),
        }
    if world.main:
        a.out.write_text(json.dumps(result))
    barrier()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down


def overhead(training: Training, rounds: int, steps: int, world: World) -> dict[str, float]:
    """What log lines and checkpoints add to a step at their intervals, in parts of it."""
    logs, plain, saving = [], [], []

    def save() -> None:
        training.save()
        training.learn()

    for turn in range(rounds):
        training.learn()
        logs.append(timed(training.log, 1, world))
        for with_save in (False, True) if turn % 2 else (True, False):
            # The write goes on beside the next steps: they are all counted, until it is complete.
            first = timed(save if with_save else training.learn, 1, world)
            rest = timed(training.learn, steps - 1, world) * (steps - 1)
            began = time.perf_counter()
            training.saver.wait()
            (saving if with_save else plain).append(first + rest + time.perf_counter() - began)
    t = training.config.train
    step = statistics.median(plain) / steps
    saved = statistics.median(s - p for s, p in zip(saving, plain, strict=True))
    return {
        "log_ms": 1e3 * statistics.median(logs),
        "log_overhead": statistics.median(logs) / t.log_every / step,
        "checkpoint_ms": 1e3 * saved,
        "checkpoint_in_steps": saved / step,
        "checkpoint_overhead": saved / t.checkpoint_every / step,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument(
        "--config", type=Path, default=Path(__file__).parents[1] / "configs/ddpm-cifar10.yaml"
    )
    parser.add_argument("--zero", type=int, nargs="+", default=[0, 1], choices=range(4))
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1, help="of each rank on a CPU")
    parser.add_argument("--batch", type=int, default=4, help="over all ranks")
    parser.add_argument("--size", type=int, default=64, help="of the pictures, in pixels")
    precision = "bf16" if torch.cuda.is_available() else "fp32"
    parser.add_argument("--precision", default=precision, choices=("fp32", "bf16"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3, help="of a side in a round")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args(argv)
    if a.out is not None:
        work(a)
        return
    with tempfile.TemporaryDirectory() as name:
        a.data, a.out = small_set.packed(Path(name), 256, a.size), Path(name) / "result.json"
        # fmt: off
        command = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(a.ranks),
            __file__, *(sys.argv[1:] if argv is None else argv), "--data", str(a.data), "--out", str(a.out),
        ]
        # fmt: on
        subprocess.run(command, check=True, stdout=sys.stderr)
        print(
            json.dumps({"ranks": a.ranks, "batch": a.batch, "size": a.size} | json.loads(a.out.read_text()))
        )


if __name__ == "__main__":
    main()
