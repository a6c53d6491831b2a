"""A training step here beside the same architecture as people write it: images a second and peak memory.

    python benchmarks/train_step.py [--model ddpm] [--sides stock:1 ours:1 ours:2] [--batch 8] [--rounds 5]
    python benchmarks/train_step.py --model diffusers --batch 2

``stock`` for ``ddpm`` is the DDPM UNet in plain PyTorch: nn.MultiheadAttention in eager form that returns its
weights, fp32, AdamW as it comes, an EMA loop over the parameters; DistributedDataParallel where it has two
processes. ``stock`` for ``diffusers`` is its UNet2DConditionModel in a loop of accelerate with its EMAModel
(pip install accelerate). ``ours`` is what diffcore/train.py runs: Engine, loss and Ema.

A side is NAME:PROCESSES, or NAME:PROCESSES:VARIABLE=VALUE,... to try environment settings, and lives in
processes of its own, which share the machine's cores. Steps of the sides take turns, so that a busy moment
hits every one; figures are medians, ratios medians over the rounds. CPU seconds stand beside wall time: they
say more where other work shares the cores.

Memory is the high-water mark of the resident set, summed over a side's processes (on CUDA: of the allocator).
Prints one JSON object (progress goes to stderr), with the ceiling that this machine reaches in its best
convolution or matrix product, the share of it that each side reaches (FLOPs a step, counted by torch, over
time over ceiling) and the operators that take most of its time.

On CUDA these two commands without --sides and --batch make the GPU's figures: ``ours`` in bf16 under
torch.compile, batch 128 (a side that does not fit halves its own), ten steps a turn; between turns a side
holds its weights alone. MFU is the share of the GPU's published bf16 peak. The same on a CPU, to try it:
``--precision bf16 --compile --batch 4 --width 16 --size 32 --steps 2``.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch.nn import functional as F

from benchmarks import step_sides
from benchmarks.step_sides import CUDA, Work
from diffcore.models.flops import peak_flops, training_flops

# --- the machine's ceiling ----------------------------------------------------------------------------------


def best_of(seconds: float, work: Callable[[], Any]) -> float:
    """Shortest time of one call within ``seconds``."""
    work()
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end:
        if CUDA:
            torch.cuda.synchronize()
        begin = time.perf_counter()
        work()
        if CUDA:
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return best


def ceilings(threads: int) -> dict[str, float]:
    """FLOP/s of the best 3 x 3 convolution and matrix product, with all threads; on a GPU in bf16."""
    torch.set_num_threads(threads)
    device, kind = ("cuda", torch.bfloat16) if CUDA else ("cpu", torch.float32)
    n, c, s = (64, 256, 64) if CUDA else (8, 128, 32)
    found = {}
    with torch.no_grad():
        for edge in (8192,) if CUDA else (1024, 2048):
            a = torch.randn(edge, edge, device=device, dtype=kind)
            found[f"matrix product {edge}"] = 2 * edge**3 / best_of(1.5, lambda a=a: a @ a)
        for width in (c, 2 * c):
            x = torch.randn(n, width, s, s, device=device, dtype=kind).to(memory_format=torch.channels_last)
            w = torch.randn(width, width, 3, 3, device=device, dtype=kind).to(
                memory_format=torch.channels_last
            )
            flops = 2 * n * s * s * 9 * width**2
            found[f"convolution {width}"] = flops / best_of(1.5, lambda x=x, w=w: F.conv2d(x, w, padding=1))
    if CUDA:
        torch.cuda.empty_cache()
    return found


# --- the sides taking turns --------------------------------------------------------------------------------


class Side:
    """A side's processes, and its steps' times: one entry a turn, the median of the turn's steps."""

    def __init__(self, label: str, work: Work) -> None:
        self.label, self.work = label, work
        self.name, _, rest = label.partition(":")
        count, _, settings = rest.partition(":")
        self.processes = int(count or 1)
        self.settings = dict(pair.split("=", 1) for pair in settings.split(",") if pair)
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.memory = 0
        self.operators: dict[str, float] = {}
        self.launch()

    def launch(self) -> None:
        """Start the processes and wait for their first step; on a GPU that is too small halve the batch."""
        threads = max(1, self.work.threads // self.processes)
        work = replace(self.work, threads=threads)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.ranks = []
        for rank in range(self.processes):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": self.processes, "MASTER_PORT": port}
            env = {k: str(v) for k, v in place.items()} | {
                "MASTER_ADDR": "127.0.0.1",
                "LOCAL_WORLD_SIZE": str(self.processes),
                "OMP_NUM_THREADS": str(threads),
            }
            process = subprocess.Popen(
                [sys.executable, step_sides.__file__, self.name, json.dumps(asdict(work))],
                env=os.environ | env | self.settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.ranks.append(process)
        if self._answers() is None:
            self.close()
            self.work = replace(self.work, batch=self.work.batch // 2)
            if self.work.batch < self.processes:
                raise SystemExit(f"{self.label}: does not fit even with one image a process")
            self.launch()

    def _answers(self) -> list[dict[str, Any]] | None:
        """What every rank says; None if one had too little memory."""
        lines = [rank.stdout.readline() for rank in self.ranks]
        if "" in lines:
            self.close()
            raise SystemExit(f"{self.label}: a process ended; its trouble is above")
        answers = [json.loads(line) for line in lines]
        return None if any("oom" in answer for answer in answers) else answers

    def _ask(self, what: str) -> list[dict[str, Any]]:
        for rank in self.ranks:
            rank.stdin.write(f"{what}\n")
            rank.stdin.flush()
        answers = self._answers()
        if answers is None:
            raise SystemExit(f"{self.label}: out of memory after its first step; a smaller --batch will do")
        return answers

    def turn(self, steps: int) -> None:
        answers = self._ask(str(steps))
        self.seconds.append(max(answer["seconds"] for answer in answers))
        self.cpu_seconds.append(sum(answer["cpu_seconds"] for answer in answers))
        self.memory = sum(answer["memory"] for answer in answers)

    def profile(self) -> None:
        """Where one more step spends its time, on rank 0."""
        self.operators, *_ = self._ask("profile")

    def close(self) -> None:
        for rank in self.ranks:
            rank.kill()
            rank.wait()

    def report(self, flops: int, ceiling: float) -> dict[str, Any]:
        rate = self.work.batch / statistics.median(self.seconds)
        figures = {
            "images_per_second": round(rate, 3),
            "seconds_a_step": [round(s, 3) for s in self.seconds],
            "cpu_seconds_an_image": round(statistics.median(self.cpu_seconds) / self.work.batch, 3),
            "batch": self.work.batch,
            "peak_memory_mib": round(self.memory / 2**20),
            "share_of_ceiling": round(rate * flops / ceiling, 3),
            "time_goes_to": self.operators,
        }
        if not CUDA:  # as if it had its cores to itself
            busy = statistics.median(self.cpu_seconds) / self.work.batch / self.work.threads
            figures["share_by_cpu_seconds"] = round(flops / busy / ceiling, 3)
        elif peak := peak_flops(torch.device("cuda"), "bf16"):
            figures["mfu"] = round(rate * flops / (peak * self.processes), 3)
        return figures


def compare(sides: Sequence[Side]) -> dict[str, Any]:
    """Every other side beside the first: medians over the rounds of the ratio of images a second."""
    first, *others = sides

    def faster(side: Side, by: str) -> float:
        pairs = zip(getattr(first, by), getattr(side, by), strict=True)
        return round(statistics.median(a / b for a, b in pairs) * side.work.batch / first.work.batch, 2)

    return {
        f"{side.label} / {first.label}": {
            "speed": faster(side, "seconds"),
            "speed_by_cpu_seconds": faster(side, "cpu_seconds"),
            "peak_memory": round(side.memory / first.memory, 3),
        }
        for side in others
    }


def tell(line: str) -> None:
    """Progress, apart from the JSON: all that is left of a benchmark that runs out of its time."""
    print(line, file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=("ddpm", "diffusers"), default="ddpm")
    parser.add_argument("--sides", nargs="+", default=None, metavar="SIDE")
    parser.add_argument("--batch", type=int, default=128 if CUDA else 8, help="images a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10 if CUDA else 1, help="steps a turn")
    parser.add_argument("--width", type=int, help="channels at full resolution (64, diffusers 128)")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if CUDA else "fp32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=CUDA)
    arguments = parser.parse_args()
    width = arguments.width or {"ddpm": 64, "diffusers": 128}[arguments.model]
    work = Work(
        arguments.model, arguments.batch, width, arguments.size, arguments.threads,
        arguments.precision, arguments.compile,
    )  # fmt: skip
    devices = torch.cuda.device_count() if CUDA else arguments.threads
    two = ["ours:2"] if arguments.model == "ddpm" and devices > 1 else []
    ceiling = ceilings(arguments.threads)
    flops = training_flops(step_sides.config_of(work).model, work.schema, work.size)
    sides: list[Side] = []
    try:
        for label in arguments.sides or ["stock:1", "ours:1", *two]:
            begin = time.perf_counter()
            sides.append(Side(label, work))
            tell(f"{label}: first step of {sides[-1].work.batch} images {time.perf_counter() - begin:.0f} s")
        for number in range(arguments.rounds):
            for side in sides:
                side.turn(arguments.steps)
                tell(f"round {number + 1}, {side.label}: {side.work.batch / side.seconds[-1]:.3f} images/s")
        for side in sides:
            side.profile()
    finally:
        for side in sides:
            side.close()
    report = {
        "model": arguments.model,
        "size": arguments.size,
        "width": width,
        "ours": {"precision": arguments.precision, "compile": arguments.compile},
        "device": torch.cuda.get_device_name() if CUDA else f"{arguments.threads} CPU threads",
        "torch": torch.__version__,
        "gflop_an_image": round(flops / 1e9, 2),
        "ceiling_gflops": {name: round(value / 1e9) for name, value in ceiling.items()},
        "sides": {side.label: side.report(flops, max(ceiling.values())) for side in sides},
        "ratios": compare(sides),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
