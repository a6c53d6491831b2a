"""What one GPU makes of configs/avatar-adamw.yaml: right numbers, how fast, and what holds it up.

    python benchmarks/gpu_step.py [--config configs/avatar-adamw.yaml] [--batch 128] [--seconds 240]

- ``agreement``: output and gradient of every network on the CPU and on the GPU, in fp32 and under bf16,
  beside the CPU's float64: relative errors. Images drawn on both from the same noise: how many bytes differ.
- ``training``: the training engine as a run has it (reader, draws, loss, engine, EMA), eager and compiled,
  and both with ``engine.channels_last``: images/s, share of the published peak (MFU), the parts of a step,
  and of three steps under torch's profiler the share of the time in which a kernel ran, and how often a step
  waited for the device or copied to it.
- ``network``: the same network in a plain loop over one batch that lies on the GPU, so that nothing is waited
  for: in torch's layout and in channels_last, eager, compiled, and as a CUDA graph.
- ``sampling``: images/s, guided, 20 steps.
- ``settings``: what ``engine.compile auto`` becomes, and the file of ``train.memory_snapshot``.

Parts that would begin after ``--seconds`` are left out and named. Prints one JSON object. Runs on a CPU too,
with ``--batch 4 --size 16 --config SMALL``.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diffcore import models
from diffcore.config import configure
from diffcore.config.tree import Config, Engine
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import process_group
from diffcore.engine.ranks import World
from diffcore.models.flops import peak_flops, training_flops
from diffcore.runs.draw import choose_labels, draw
from diffcore.training.guards.stopping import StopFlag
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.run import Training
from shards.schema import CARTOON_SET, Attribute
from tests.support import small_set

REPOSITORY = Path(__file__).resolve().parents[1]
ENDLESS = 10**9
"""Steps that no run comes to the end of."""
NETWORKS = ("avatar-adamw", "ddpm-cifar10", "diffusers-32")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--config", type=Path, default=REPOSITORY / "configs/avatar-adamw.yaml")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--size", type=int, default=64, help="of the pictures, in pixels")
    parser.add_argument("--steps", type=int, default=10, help="of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=240.0, help="after which nothing new begins")
    parser.add_argument("--networks", nargs="*", default=NETWORKS, help="whose numbers are compared")
    parser.add_argument("--parts", nargs="*", help="only these, in this order")
    parser.add_argument("--trace", type=Path, help="file for a Perfetto trace of an eager step")
    a = parser.parse_args(argv)
    began = time.monotonic()
    # DeepSpeed says things on stdout, where one JSON object belongs.
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        folder = Path(name)
        world = process_group.start(folder / "group", None)
        data = small_set.packed(folder / "set", 1024 if world.device.type == "cuda" else 64, a.size)
        config = configure.load(
            a.config,
            {
                "data": {"path": str(data)},
                "batch": {"size": a.batch, "micro": None},
                "train": {"steps": ENDLESS, "log_every": ENDLESS, "checkpoint_every": ENDLESS},
                "memory": {"trace": False},
                "validation": {"every": None},
            },
        )
        cuda = world.device.type == "cuda"
        parts: dict[str, Callable[[], Any]] = {
            "training": lambda: training(config, world, folder / "eager", a, a.trace),
            "network": lambda: network(config, world, a, channels_last=False),
            "network channels_last": lambda: network(config, world, a, channels_last=True),
            "sampling": lambda: {p: sampling(config, world, a, p) for p in ("fp32", "bf16")},
            "training compiled": lambda: training(
                engine(config, compile="on"), world, folder / "compiled", a
            ),
            "network channels_last compiled": lambda: network(
                config, world, a, channels_last=True, how="default"
            ),
            "settings": lambda: choices(config, world, folder / "settings"),
        }
        if cuda:
            parts["network channels_last graph"] = lambda: network(
                config, world, a, channels_last=True, how="reduce-overhead"
            )
        for network_name in a.networks:
            parts[f"agreement {network_name}"] = lambda n=network_name: agreement(n, a.size, world.device)
        last = engine(config, channels_last=True)
        parts["training channels_last"] = lambda: training(last, world, folder / "last", a)
        parts["training channels_last compiled"] = lambda: training(
            engine(last, compile="on"), world, folder / "last compiled", a
        )
        found: dict[str, Any] = {
            "device": torch.cuda.get_device_name() if cuda else "CPU",
            "config": a.config.name,
            "batch": a.batch,
            "size": a.size,
            "gflop_an_image": round(training_flops(config.model, CARTOON_SET, a.size) / 1e9, 2),
            "left_out": [],
            "failed": {},
        }
        for part, work in parts.items() if a.parts is None else ((p, parts[p]) for p in a.parts):
            if time.monotonic() - began > a.seconds:
                found["left_out"].append(part)
                continue
            start = time.monotonic()
            try:
                found[part] = work()
            except Exception as error:  # the others are measured all the same
                found["failed"][part] = f"{type(error).__name__}: {error}"[:500]
            if cuda:
                torch.cuda.empty_cache()
            print(f"{part}: {time.monotonic() - start:.0f} s {found.get(part, 'failed')}", file=sys.stderr)
        found["seconds"] = round(time.monotonic() - began)
        process_group.stop()
    print(json.dumps(found, indent=1), flush=True)


def engine(config: Config, **fields: Any) -> Config:
    return config.model_copy(update={"engine": config.engine.model_copy(update=fields)})


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def rate(step: Callable[[], Any], a: argparse.Namespace, device: torch.device) -> float:
    """Images a second: the median of the rounds."""
    for _ in range(3):
        step()
    rounds = []
    for _ in range(a.rounds):
        synchronize(device)
        began = time.perf_counter()
        for _ in range(a.steps):
            step()
        synchronize(device)
        rounds.append(a.batch * a.steps / (time.perf_counter() - began))
    return statistics.median(rounds)


def speed(config: Config, images_per_second: float, world: World, size: int) -> dict[str, float]:
    found = {"images_per_second": images_per_second}
    if peak := peak_flops(world.device, config.engine.precision):
        found["mfu"] = images_per_second * training_flops(config.model, CARTOON_SET, size) / peak
    return found


# --- the training engine ------------------------------------------------------------------------------------


def training(
    config: Config, world: World, run: Path, a: argparse.Namespace, trace: Path | None = None
) -> dict[str, Any]:
    config = config.model_copy(update={"run": run})
    watchdog = Watchdog(run, world.rank, ENDLESS, config.guards)
    with Training(config, world, StopFlag(), watchdog) as run_:
        found: dict[str, Any] = speed(config, rate(run_.learn, a, world.device), world, a.size)
        run_.clock.read()
        run_.clock.start()
        for _ in range(a.steps):
            run_.learn()
        parts = run_.clock.read()
        found["ms"] = {part: 1e3 * seconds / a.steps for part, seconds in parts.items()}
        found["profile"] = busy(run_.learn, world.device)
        if trace is not None:
            write_trace(run_.learn, world.device, trace)
        if world.device.type == "cuda":
            found["peak_bytes"] = torch.cuda.max_memory_allocated()
    return found


def choices(config: Config, world: World, run: Path) -> dict[str, Any]:
    """What is said of ``engine.compile auto``, and the bytes of each file of a snapshot of steps 2 and 3."""
    _, said = models.settled(engine(config, compile="auto"), world)
    train = config.train.model_copy(update={"memory_snapshot": (2, 3)})
    config = config.model_copy(update={"run": run, "train": train})
    with Training(config, world, StopFlag(), Watchdog(run, world.rank, ENDLESS, config.guards)) as run_:
        for _ in range(4):
            run_.learn()
        notes = list(run_.profile.notes)
    return {"said": said + notes, "files": {p.name: p.stat().st_size for p in run.glob("profile/*")}}


def busy(step: Callable[[], Any], device: torch.device, steps: int = 3) -> dict[str, Any]:
    """Of some steps: the share of the time with a kernel on the device, waits and copies a step, and the
    kernels that took most of it."""
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    step()
    synchronize(device)
    with profile(activities=activities) as profiler:
        began = time.perf_counter()
        for _ in range(steps):
            step()
        synchronize(device)
        wall = time.perf_counter() - began
    on_device, calls, kernels = [], Counter[str](), Counter[str]()
    for event in profiler.events():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            on_device.append((event.time_range.start, event.time_range.end))
            kernels[event.name[:90]] += event.time_range.end - event.time_range.start
        elif event.name in WAITS or event.name.startswith(("cudaMemcpy", "cudaLaunchKernel", "aten::_local")):
            calls[event.name] += 1
    covered, last = 0.0, 0.0
    for start, end in sorted(on_device):
        covered += max(0.0, end - max(start, last))
        last = max(last, end)
    copies = Counter(event.name for event in profiler.events() if event.name.startswith("Memcpy"))
    return {
        "ms_a_step": 1e3 * wall / steps,
        "kernel_share": covered / 1e6 / wall,
        "calls_a_step": {name: round(count / steps, 1) for name, count in sorted(calls.items())},
        "copies_a_step": {name: round(count / steps, 1) for name, count in sorted(copies.items())},
        "kernels_ms_a_step": {name: round(us / 1e3 / steps, 2) for name, us in kernels.most_common(15)},
    }


def write_trace(step: Callable[[], Any], device: torch.device, trace: Path) -> None:
    """One step, with the lines of Python that each call comes from."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities, with_stack=True, record_shapes=True) as profiler:
        step()
        synchronize(device)
    profiler.export_chrome_trace(str(trace))


# --- the network alone --------------------------------------------------------------------------------------


def network(
    config: Config, world: World, a: argparse.Namespace, channels_last: bool, how: str = "eager"
) -> dict[str, float]:
    """A plain loop under bf16 autocast over one batch on the device; ``how``: eager, or a mode of compile."""
    torch.use_deterministic_algorithms(False)
    torch.manual_seed(config.seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net = models.build(config.model, CARTOON_SET, a.size).to(world.device, memory_format=layout)
    forward = net if how == "eager" else torch.compile(net, dynamic=False, mode=how)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-6, fused=True)
    x, t_B, labels_BA, keep_B = inputs(a.batch, a.size, world.device, layout)

    def step() -> None:
        with torch.autocast(world.device.type, torch.bfloat16):
            out = forward(x, t_B, labels_BA, keep_B)
            loss = (out.float() - x).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return speed(config, rate(step, a, world.device), world, a.size)


def inputs(
    count: int, size: int, device: torch.device, layout: torch.memory_format = torch.contiguous_format
) -> tuple[Tensor, ...]:
    source = torch.Generator().manual_seed(1)
    labels = [torch.randint(a.variants, (count,), generator=source) for a in CARTOON_SET]
    return (
        torch.randn(count, 3, size, size, generator=source).to(device, memory_format=layout),
        torch.randint(1000, (count,), generator=source).to(device),
        torch.stack(labels, 1).to(device),
        (torch.rand(count, generator=source) > 0.1).to(device),
    )


def sampling(config: Config, world: World, a: argparse.Namespace, precision: str) -> dict[str, float]:
    torch.manual_seed(config.seed)
    net = models.build(config.model, CARTOON_SET, a.size).to(world.device).eval()
    settings = config.sampling.model_copy(update={"steps": 20, "sampler": "dpm++", "guidance": 2.0})
    labels = choose_labels(CARTOON_SET, {}, 0, 2 * a.batch)

    def once() -> None:
        with torch.autocast(world.device.type, torch.bfloat16, enabled=precision == "bf16"):
            draw(
                net, NoiseSchedule.of(config.diffusion), labels, range(len(labels)), settings,
                shape=(3, a.size, a.size), seed=0, device=world.device, batch=a.batch,
            )  # fmt: skip

    once()
    began = time.perf_counter()
    once()
    return {"images_per_second": len(labels) / (time.perf_counter() - began), "steps": 20, "guidance": 2.0}


# --- the same numbers ---------------------------------------------------------------------------------------


def agreement(name: str, size: int, device: torch.device) -> dict[str, Any]:
    """Relative errors (2-norm) beside float64 on the CPU, of one network from ``configs``."""
    config = configure.load(REPOSITORY / "configs" / f"{name}.yaml", {})
    size = min(size, 32) if name != "avatar-adamw" else size
    schema: tuple[Attribute, ...] = CARTOON_SET
    torch.manual_seed(0)
    net = models.build(config.model, schema, size)
    with torch.no_grad():  # some begin as zeros, whose gradient is rounding alone
        for parameter in net.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    given = inputs(4, size, torch.device("cpu"))
    exact = outcome(net.double(), (given[0].double(), *given[1:]))
    net.float()
    found = {"cpu fp32": errors(outcome(net, given), exact)}
    last = models.prepare(copy.deepcopy(net), Engine(channels_last=True)).to(device)
    on = tuple(x.to(device) for x in given)
    net.to(device)
    found[f"{device.type} fp32"] = errors(outcome(net, on), exact)
    found[f"{device.type} fp32 channels_last"] = errors(outcome(last, on), exact)
    with torch.autocast(device.type, torch.bfloat16):
        found[f"{device.type} bf16"] = errors(outcome(net, on), exact)
        found[f"{device.type} bf16 channels_last"] = errors(outcome(last, on), exact)
    if device.type == "cuda":
        before = torch.backends.cudnn.allow_tf32
        torch.backends.cudnn.allow_tf32 = False
        found["cuda fp32 without TF32"] = errors(outcome(net, on), exact)
        found["drawn without TF32"] = drawn(net, config, size, device)
        torch.backends.cudnn.allow_tf32 = before
    found["drawn"] = drawn(net, config, size, device)
    return found


def outcome(net: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """Output and gradient, on the CPU in float64."""
    net.zero_grad(set_to_none=True)
    out = net(*given)
    out.float().square().mean().backward() if out.dtype != torch.float64 else out.square().mean().backward()
    gradients = [p.grad.flatten().double().cpu() for p in net.parameters() if p.grad is not None]
    return out.detach().double().cpu(), torch.cat(gradients)


def errors(found: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> dict[str, float]:
    pairs = zip(("output", "gradient"), found, exact, strict=True)
    return {name: float((x - y).norm() / y.norm()) for name, x, y in pairs}


def drawn(net: nn.Module, config: Config, size: int, device: torch.device) -> dict[str, float]:
    """Four images of 10 steps, here and on the CPU: the share of bytes that differ, and the largest step."""
    settings = config.sampling.model_copy(update={"steps": 10, "sampler": "dpm++", "guidance": 2.0})
    labels = choose_labels(CARTOON_SET, {}, 0, 4)
    images = []
    for where in (torch.device("cpu"), device):
        # fmt: off
        images.append(draw(net.to(where), NoiseSchedule.of(config.diffusion), labels, range(4), settings,
                           shape=(3, size, size), seed=0, device=where).astype(int))
        # fmt: on
    apart = abs(images[0] - images[1])
    return {"bytes_that_differ": float((apart > 0).mean()), "most": int(apart.max())}


if __name__ == "__main__":
    main()
