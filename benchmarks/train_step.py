"""A training step here beside the same architecture as people write it: images a second and peak memory.

    python benchmarks/train_step.py [--model ddpm] [--sides stock:1 ours:1 ours:2] [--batch 8] [--rounds 5]
    python benchmarks/train_step.py --model diffusers --sides stock:1 ours:1 --batch 2

``stock`` for ``ddpm`` is the DDPM UNet in plain PyTorch: nn.MultiheadAttention in eager form that returns its
weights, fp32, AdamW as it comes, an EMA loop over the parameters; DistributedDataParallel where it has two
processes. ``stock`` for ``diffusers`` is its UNet2DConditionModel in a loop of accelerate with its EMAModel
(pip install accelerate). ``ours`` is what diffcore/train.py runs: Engine, loss and Ema.

A side is NAME:PROCESSES, or NAME:PROCESSES:VARIABLE=VALUE,... to try environment settings, and lives in
processes of its own, which share the machine's cores. Steps of the sides take turns, so that a busy moment
hits every one; figures are medians, ratios medians over the rounds. CPU seconds stand beside wall time: they
say more where other work shares the cores.

Memory is the high-water mark of the resident set, summed over a side's processes (on CUDA: of the allocator).
Prints one JSON object, with the ceiling that this machine reaches in its best convolution or matrix product,
the share of it that each side reaches (FLOPs a step, counted by torch, over time over ceiling) and the
operators that take most of its time. On CUDA ``ours`` runs in bf16 under torch.compile, the batch is 128 (a
side that does not fit halves its own), and MFU is the share of the GPU's published bf16 peak.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import resource
import socket
import statistics
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.stock_networks import StockDdpm, StockDiffusers
from shards.attributes import CARTOON_SET, one_hot_offsets, one_hot_width

CUDA = torch.cuda.is_available()
# Dense bf16 FLOP/s as NVIDIA's data sheets say; by a part of the device's name.
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
}
TIMESTEPS = 1000


# --- one side: what makes a step ----------------------------------------------------------------------------

Step = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What every side is asked for; ``batch`` is over all its processes."""

    model: str
    batch: int
    width: int
    size: int
    threads: int
    precision: str
    """Of ours; stock is fp32, or accelerate's bf16 on CUDA."""
    compile: bool
    """Of ours."""

    @property
    def unet(self) -> dict[str, Any]:
        """diffusers-32.yaml's UNet at full width."""
        return {
            "block_out_channels": (self.width, 2 * self.width, 4 * self.width),
            "cross_attention_dim": 10 * self.width,
            "attention_head_dim": min(32, self.width),
            "only_cross_attention": True,
        }


@dataclass(frozen=True)
class Batch:
    """The same pictures, noise and labels at every step: data is another benchmark's."""

    images: Tensor
    t: Tensor
    eps: Tensor
    labels: Tensor

    @classmethod
    def of(cls, work: Work, share: int, device: torch.device) -> Batch:
        random = torch.Generator().manual_seed(0)
        shape = (share, 3, work.size, work.size)
        return cls(
            torch.rand(shape, generator=random).mul(2).sub(1).to(device),
            torch.randint(TIMESTEPS, (share,), generator=random).to(device),
            torch.randn(shape, generator=random).to(device),
            torch.stack([torch.randint(a.variants, (share,), generator=random) for a in CARTOON_SET], 1).to(
                device
            ),
        )


def ours(work: Work) -> Step:
    """One optimizer step as diffcore/train.py makes it."""
    from diffcore import models
    from diffcore.config import Config
    from diffcore.diffusion.loss import WEIGHTS, denoising_loss
    from diffcore.diffusion.randomness import Draws
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.ema import Ema
    from diffcore.engine import Engine, start

    model = {"kind": "ddpm", "width": work.width, "labels": "none"}
    if work.model == "diffusers":
        model = {"kind": "diffusers", **work.unet}
    config = Config.model_validate(
        {
            "run": "unused",
            "data": {"path": "unused"},
            "model": model,
            "diffusion": {"label_dropout": 0.0},
            "sampling": {"guidance": 1.0},
            "optimizer": {"lr": 1e-4, "weight_decay": 0.01},
            "batch": {"size": work.batch},
            "engine": {
                "zero": 1 if work.precision == "bf16" else 0,
                "precision": work.precision,
                "compile": work.compile,
                "gradient_clipping": 0.0,
                "threads": work.threads,
            },
            "train": {"steps": 1},
        }
    )
    world = start(work.threads)
    torch.manual_seed(0)
    schema = CARTOON_SET if work.model == "diffusers" else ()
    network = models.prepare(models.build(config.model, schema, work.size), config.engine)
    engine = Engine(network, config, world)
    ema = Ema(engine, config.ema)
    schedule = NoiseSchedule.of(config.diffusion)
    weights_T = WEIGHTS["uniform"](schedule)
    b = Batch.of(work, engine.micro, world.device)
    draws = Draws(b.t, b.eps, torch.ones(engine.micro, dtype=torch.bool, device=world.device))
    steps = itertools.count()

    def step() -> None:
        loss = denoising_loss(engine, schedule, weights_T, b.images, b.labels, draws).mean()
        engine.backward(loss)
        engine.step(1e-4)
        ema.update(next(steps))
        loss.item()

    return step


def noised(b: Batch) -> Tensor:
    """x_t of linear betas, 1e-4 to 0.02 (Ho et al. 2020)."""
    alpha_bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, TIMESTEPS, device=b.images.device), 0)
    kept = alpha_bar[b.t][:, None, None, None]
    return kept.sqrt() * b.images + (1 - kept).sqrt() * b.eps


def stock_ddpm(work: Work) -> Step:
    """Plain PyTorch; DistributedDataParallel among several processes."""
    processes = int(os.environ["WORLD_SIZE"])
    device = torch.device("cuda", int(os.environ["RANK"])) if CUDA else torch.device("cpu")
    if CUDA:
        torch.cuda.set_device(device)
    torch.set_num_threads(work.threads)
    torch.manual_seed(0)
    network = StockDdpm(work.width).to(device)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    trained: nn.Module = network
    if processes > 1:
        torch.distributed.init_process_group("nccl" if CUDA else "gloo")
        trained = nn.parallel.DistributedDataParallel(network)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    b = Batch.of(work, work.batch // processes, device)

    def step() -> None:
        loss = F.mse_loss(trained(noised(b), b.t), b.eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        for mean, now in zip(average.parameters(), network.parameters(), strict=True):
            mean.data = mean.data * 0.995 + 0.005 * now.data
        loss.item()

    return step


def stock_diffusers(work: Work) -> Step:
    """A loop of accelerate, as diffusers' training examples have it."""
    from accelerate import Accelerator
    from diffusers.training_utils import EMAModel

    torch.set_num_threads(work.threads)
    accelerator = Accelerator(cpu=not CUDA, mixed_precision="bf16" if CUDA else "no")
    torch.manual_seed(0)
    width = one_hot_width(CARTOON_SET)
    network = StockDiffusers(width, work.unet)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    average = EMAModel(network.parameters(), decay=0.9999)
    average.to(accelerator.device)
    trained, optimizer = accelerator.prepare(network, optimizer)
    b = Batch.of(work, work.batch // accelerator.num_processes, accelerator.device)
    columns = b.labels + torch.tensor(one_hot_offsets(CARTOON_SET), device=accelerator.device)
    encoded = torch.zeros(len(columns), width, device=accelerator.device).scatter_(1, columns, 1.0)

    def step() -> None:
        with accelerator.accumulate(trained):
            loss = F.mse_loss(trained(noised(b), b.t, encoded).float(), b.eps)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        average.step(network.parameters())
        loss.item()

    return step


SIDES: dict[tuple[str, str], Callable[[Work], Step]] = {
    ("ours", "ddpm"): ours,
    ("ours", "diffusers"): ours,
    ("stock", "ddpm"): stock_ddpm,
    ("stock", "diffusers"): stock_diffusers,
}


def memory() -> int:
    """High-water mark of this process, bytes."""
    if CUDA:
        return torch.cuda.max_memory_reserved()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def operators(step: Step, count: int = 6) -> dict[str, float]:
    """The operators that a step spends most of its time in, with their shares of it."""
    with torch.profiler.profile() as recorded:
        step()
    times = {
        row.key: row.self_device_time_total if CUDA else row.self_cpu_time_total
        for row in recorded.key_averages()
    }
    most = sorted(times, key=lambda name: -times[name])[:count]
    return {name: round(times[name] / sum(times.values()), 3) for name in most}


def serve(name: str, work: Work) -> NoReturn:
    """A rank of a side: every line on stdin is a step; it answers "memory so far, CPU seconds", or "oom"."""
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print
    try:
        step = SIDES[name, work.model](work)
        step()
        print(memory(), 0, file=answers, flush=True)
        for line in sys.stdin:
            if line == "profile\n":
                print(json.dumps(operators(step)), file=answers, flush=True)
                continue
            begin = time.process_time()
            step()
            print(memory(), time.process_time() - begin, file=answers, flush=True)
    except torch.OutOfMemoryError:
        print("oom", file=answers, flush=True)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


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
    """FLOP/s of the best 3 x 3 convolution and matrix product, with all threads."""
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


def flops_of(work: Work) -> int:
    """FLOPs of a training step's forward and backward for one image, as torch counts them."""
    with torch.device("meta"):
        b = Batch.of(work, 1, torch.device("meta"))
        if work.model == "ddpm":
            network, inputs = StockDdpm(work.width), (b.images, b.t)
        else:
            width = one_hot_width(CARTOON_SET)
            network, inputs = StockDiffusers(width, work.unet), (b.images, b.t, torch.zeros(1, width))
    counter = FlopCounterMode(display=False)
    with counter:
        network(*inputs).sum().backward()
    return counter.get_total_flops()


# --- the sides taking turns --------------------------------------------------------------------------------


class Side:
    """A side's processes, and its steps' times."""

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
            command = [sys.executable, __file__, "--serve", self.name, "--work", json.dumps(asdict(work))]
            process = subprocess.Popen(
                command,
                env=os.environ | env | self.settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            self.ranks.append(process)
        fits = self._answers()
        self.cpu_seconds.clear()
        if not fits:
            self.close()
            self.work = replace(self.work, batch=self.work.batch // 2)
            if self.work.batch < self.processes:
                raise SystemExit(f"{self.label}: does not fit even with one image a process")
            self.launch()

    def _answers(self) -> bool:
        answers = [rank.stdout.readline().strip() for rank in self.ranks]
        if "" in answers:
            self.close()
            raise SystemExit(f"{self.label}: a process ended; its trouble is above")
        if "oom" in answers:
            return False
        self.memory = sum(int(answer.split()[0]) for answer in answers)
        self.cpu_seconds.append(sum(float(answer.split()[1]) for answer in answers))
        return True

    def step(self) -> None:
        begin = time.perf_counter()
        for rank in self.ranks:
            rank.stdin.write("step\n")
            rank.stdin.flush()
        self._answers()
        self.seconds.append(time.perf_counter() - begin)

    def profile(self) -> None:
        """Where one more step spends its time, on rank 0."""
        for rank in self.ranks:
            rank.stdin.write("profile\n")
            rank.stdin.flush()
        self.operators, *_ = [json.loads(rank.stdout.readline()) for rank in self.ranks]

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
        if CUDA and (peak := next((v for k, v in PEAKS.items() if k in torch.cuda.get_device_name()), None)):
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--model", choices=("ddpm", "diffusers"), default="ddpm")
    parser.add_argument("--sides", nargs="+", default=None, metavar="SIDE")
    parser.add_argument("--batch", type=int, default=128 if CUDA else 8, help="images a step")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, help="channels at full resolution (64, diffusers 128)")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="bf16" if CUDA else "fp32")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=CUDA)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, Work(**json.loads(arguments.work)))
    width = arguments.width or {"ddpm": 64, "diffusers": 128}[arguments.model]
    work = Work(
        arguments.model, arguments.batch, width, arguments.size, arguments.threads,
        arguments.precision, arguments.compile,
    )  # fmt: skip
    labels = arguments.sides or ["stock:1", "ours:1"] + (["ours:2"] if arguments.model == "ddpm" else [])
    ceiling = ceilings(arguments.threads)
    flops = flops_of(work)
    sides: list[Side] = []
    try:
        for label in labels:
            sides.append(Side(label, work))
        for _ in range(arguments.rounds):
            for side in sides:
                side.step()
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
        "gflop_an_image": round(flops / 1e9, 1),
        "ceiling_gflops": {name: round(value / 1e9) for name, value in ceiling.items()},
        "sides": {side.label: side.report(flops, max(ceiling.values())) for side in sides},
        "ratios": compare(sides),
    }
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
