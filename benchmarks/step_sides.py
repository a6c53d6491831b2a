"""What benchmarks/train_step.py sets side by side: what makes a step, here and as people write it.

A side runs in processes of its own: ``python benchmarks/step_sides.py NAME WORK`` is one rank of it, which
train_step.py starts and leads by its stdin and stdout (``serve``).
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.stock_networks import StockDdpm, StockDiffusers
from diffcore.config.tree import Config
from shards.schema import CARTOON_SET, Attribute, one_hot_offsets, one_hot_width

CUDA = torch.cuda.is_available()
TIMESTEPS = 1000
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
    def schema(self) -> tuple[Attribute, ...]:
        return CARTOON_SET if self.model == "diffusers" else ()

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


def config_of(work: Work) -> Config:
    """What diffcore/train.py would be given."""
    model = {"kind": "ddpm", "width": work.width, "labels": "none"}
    if work.model == "diffusers":
        model = {"kind": "diffusers", **work.unet}
    return Config.model_validate(
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


def ours(work: Work) -> Step:
    """One optimizer step as diffcore/train.py makes it."""
    from diffcore import models
    from diffcore.diffusion.loss import WEIGHTS, denoising_loss
    from diffcore.diffusion.randomness import Draws
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.engine.ema import Ema
    from diffcore.engine.engine import Engine
    from diffcore.engine.process_group import start

    config = config_of(work)
    world = start(work.threads)
    torch.manual_seed(0)
    network = models.prepare(models.build(config.model, work.schema, work.size), config.engine)
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
    """A rank of a side. A line on stdin says how many steps to take, or "profile".

    Answers are lines of JSON: the step's seconds and CPU seconds (medians of those steps) and the memory so
    far in bytes; {"oom": true} where it is not enough.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries print

    def answer(**fields: Any) -> None:
        print(json.dumps(fields), file=answers, flush=True)

    try:
        step = SIDES[name, work.model](work)
        step()
        answer()
        for line in sys.stdin:
            if line == "profile\n":
                answer(**operators(step))
                continue
            if CUDA:
                step()  # takes back what the other sides had in the meantime
            times = [timed(step) for _ in range(int(line))]
            seconds, cpu_seconds = (statistics.median(kind) for kind in zip(*times, strict=True))
            answer(seconds=seconds, cpu_seconds=cpu_seconds, memory=memory())
            if CUDA:
                torch.cuda.empty_cache()  # the GPU's memory is the next side's
    except torch.OutOfMemoryError:
        answer(oom=True)
    except BaseException:
        traceback.print_exc()
    os._exit(0)


def timed(step: Step) -> tuple[float, float]:
    """Seconds and CPU seconds of a step; its loss is read at the end, so a GPU has done it."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    step()
    return time.perf_counter() - begin, time.process_time() - cpu_begin


if __name__ == "__main__":
    serve(sys.argv[1], Work(**json.loads(sys.argv[2])))
