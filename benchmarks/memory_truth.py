"""python benchmarks/memory_truth.py [--cells ci|table] [--json FILE]

The planned memory of a training step beside what real DeepSpeed allocates: over gloo with 1, 2 and 4
processes, and over torch's ``fake`` process group for 8, 64 and 1024 ranks in one process. Prints every cell
and the worst one of each figure.

The planned side is diffcore.memory.plan. The measured side knows nothing of it: torch's profiler reports each
allocation and free of the CPU allocator from before the network is built, and the states are the storages of
the engine's own tensors. Errors are of the whole: (planned - measured) / measured. ``ci`` is some thirty
cells of small networks, chosen so that every pair of settings meets; ``table`` all of them and the full-size
networks, an hour on two cores. What a CPU kernel allocates and frees inside itself is counted apart.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

SMALL_BUCKET = 300_000
"""Elements of a small network's buckets: the 50 million of configs/deepspeed would drown everything else."""
# fmt: off
MODELS: dict[str, tuple[str, dict[str, Any], int]] = {
    # name: config, changes to its model, pixels
    "avatar": ("demo.yaml", {}, 32),
    "avatar-deep": ("avatar.yaml", {"channels": [32, 64, 128, 256]}, 16),
    "ddpm": ("ddpm-cifar10.yaml", {"width": 16, "embedding": 64}, 16),
    "diffusers": ("diffusers-32.yaml", {
        "block_out_channels": [32, 64, 96], "attention_head_dim": 8, "cross_attention_dim": 64,
        "tau_tokens": 16,
    }, 16),
    "avatar-full": ("avatar.yaml", {}, 64),
    "ddpm-full": ("ddpm-cifar10.yaml", {}, 64),
    "diffusers-full": ("diffusers-32.yaml", {}, 64),
}
# fmt: on
KERNELS = ("aten::convolution", "aten::_scaled_dot_product_flash_attention_for_cpu")
"""Operators that call others inside their CPU kernels."""
SETTLE = 0.003
"""Seconds after which gloo's thread has let go of a collective's tensors."""
FIGURES = ("after step", "activations", "backward peak", "step peak")
STATES = ("parameters", "masters", "optimizer", "gradients")


@dataclass(frozen=True)
class Cell:
    model: str
    zero: int
    precision: str
    checkpointing: str
    micro: int
    accumulation: int
    world: int
    rank: int
    backend: str

    def __str__(self) -> str:
        return (
            f"{self.model:14} zero {self.zero} {self.precision} {self.checkpointing:9} micro {self.micro:2} "
            f"x {self.accumulation}, rank {self.rank:4} of {self.world:4} {self.backend:4}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", choices=["ci", "table"], default="ci")
    parser.add_argument("--only", default="", help="only cells whose line has this text")
    parser.add_argument("--json", type=Path, help="write every figure here")
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work(json.loads(given.worker.read_text()))
        return

    began = time.monotonic()
    cells = [cell for cell in choose(given.cells) if given.only in str(cell)]
    rows = []
    for cell, measured in measure(cells):
        planned = plan_of(cell)
        rows.append({"cell": asdict(cell), "planned": planned, "measured": measured})
        print(line(cell, planned, measured), flush=True)
    worst = {}
    print(f"\n{len(rows)} cells in {time.monotonic() - began:.0f} s; the worst of each figure:")
    for name in FIGURES:
        row = max(rows, key=lambda row: abs(error(row, name)))
        worst[name] = abs(error(row, name))
        print(f"{name:14} {worst[name]:8.4%}   {Cell(**row['cell'])}")
    scratch = max(rows, key=lambda row: row["measured"]["with scratch"] / row["measured"]["backward peak"])
    share = scratch["measured"]["with scratch"] / scratch["measured"]["backward peak"] - 1
    print(f"scratch of the CPU's kernels, not planned: up to {share:.2%}   {Cell(**scratch['cell'])}")
    unequal = [Cell(**r["cell"]) for r in rows if r["planned"]["states"] != r["measured"]["states"]]
    print(f"states unequal to the byte: {len(unequal)}", *unequal, sep="\n")
    if given.json:
        given.json.write_text(json.dumps({"worst": worst, "unequal": len(unequal), "rows": rows}, indent=1))
    sys.exit(bool(unequal) or any(value > 0.01 for value in worst.values()))


def error(row: dict[str, Any], name: str) -> float:
    return float(row["planned"][name] / row["measured"][name] - 1)


def line(cell: Cell, planned: dict[str, Any], measured: dict[str, Any]) -> str:
    row = {"planned": planned, "measured": measured}
    figures = "  ".join(f"{name} {measured[name] / 2**20:8.2f} {error(row, name):+8.3%}" for name in FIGURES)
    return f"{cell}  {figures}  states {'=' if planned['states'] == measured['states'] else 'DIFFER'}"


def choose(which: str) -> list[Cell]:
    """The cells: pairwise for CI; for the table the whole product of small networks, and full-size ones."""
    small = ["avatar", "avatar-deep", "ddpm", "diffusers"]
    worlds = [("gloo", 1), ("gloo", 2), ("fake", 8), ("fake", 64)]
    if which == "table":
        worlds = [*worlds, ("gloo", 4), ("fake", 1024)]
    settings = itertools.product(
        small, range(4), ["fp32", "bf16"], checkpointings(), [1, 4, 16], [1, 2], worlds, ["first", "last"]
    )
    cells = []
    for model, zero, precision, checkpointing, micro, accumulation, (backend, world), place in settings:
        if (zero == 0 and precision == "bf16") or (backend == "gloo" and place == "last"):
            continue
        rank = world - 1 if place == "last" else 0
        cells.append(Cell(model, zero, precision, checkpointing, micro, accumulation, world, rank, backend))
    if which == "ci":
        return list(dict.fromkeys(pairwise(cells) + pairwise(cells, seed=1)))[:32]
    cells = pairwise(cells, seed=1) + random.Random(0).sample(cells, min(600, len(cells)))
    for model, zero, checkpointing in itertools.product(
        ["avatar-full", "ddpm-full", "diffusers-full"], range(4), checkpointings()
    ):
        for micro, world, backend in [(1, 2, "gloo"), (4, 8, "fake")]:
            for precision in ["fp32", "bf16"] if zero else ["fp32"]:
                cells.append(Cell(model, zero, precision, checkpointing, micro, 1, world, 0, backend))
    return list(dict.fromkeys(cells))


def checkpointings() -> list[str]:
    from diffcore.config import Engine

    field = Engine.model_fields.get("checkpointing")
    return ["none", "selective", "full"] if field else ["none"]


def pairwise(cells: list[Cell], seed: int = 0) -> list[Cell]:
    """Few cells in which every pair of two settings that occurs at all occurs at least once."""
    order = random.Random(seed)
    pairs = {cell: set(itertools.combinations(asdict(cell).items(), 2)) for cell in cells}
    missing = set().union(*pairs.values())
    chosen = []
    while missing:
        best = max(order.sample(cells, min(len(cells), 400)), key=lambda cell: len(pairs[cell] & missing))
        if pairs[best] & missing:
            chosen.append(best)
            missing -= pairs[best]
    return chosen


def config_of(cell: Cell) -> Any:
    from diffcore.configure import load

    name, model, _ = MODELS[cell.model]
    engine: dict[str, Any] = {"zero": cell.zero, "precision": cell.precision, "threads": 1}
    if len(checkpointings()) > 1:
        engine["checkpointing"] = cell.checkpointing
    if not cell.model.endswith("full"):
        path = REPOSITORY / "configs" / "deepspeed" / f"zero{cell.zero}.json"
        tree = json.loads(path.read_text())
        for key in ("reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size"):
            if key in tree["zero_optimization"]:
                tree["zero_optimization"][key] = SMALL_BUCKET
        if cell.zero == 3:
            tree["zero_optimization"]["stage3_param_persistence_threshold"] = 3000
        folder = Path(tempfile.gettempdir()) / f"memory-truth-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        small = folder / f"zero{cell.zero}-{os.getpid()}.json"
        small.write_text(json.dumps(tree))
        engine["deepspeed"] = small
    batch = {"micro": cell.micro, "size": cell.micro * cell.accumulation * cell.world}
    return load(REPOSITORY / "configs" / name, {"model": model, "engine": engine, "batch": batch})


# --- the planned side ---------------------------------------------------------------------------------


_TRACES: dict[Any, Any] = {}


def plan_of(cell: Cell) -> dict[str, Any]:
    from diffcore.memory import plan as planning

    config = config_of(cell)
    data = planning.Data(planning.Data.of(config).schema, MODELS[cell.model][2])
    key = (cell.model, cell.precision, cell.checkpointing, cell.micro)
    if key not in _TRACES:
        _TRACES[key] = planning.trace_quietly(config, data, cell.micro)
    planned = planning.plan(config, cell.world, cell.rank, "cpu", data=data, traced=_TRACES[key])
    forward, backward, step, after = planned.moments
    states = {name: after.bytes[name] for name in ("parameters", "masters", "optimizer")}
    return {
        "after step": after.allocated,
        "activations": forward.allocated,
        "backward peak": backward.allocated,
        "step peak": step.allocated,
        "states": states | {"gradients": planned.gradients},
    }


# --- the measured side ----------------------------------------------------------------------------------


def measure(cells: list[Cell]) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Each cell measured by real DeepSpeed; cells of one process group share their processes."""
    groups: dict[tuple[str, int, int], list[Cell]] = defaultdict(list)
    for cell in cells:
        groups[cell.backend, cell.world, cell.rank].append(cell)
    for (backend, world, rank), members in groups.items():
        with tempfile.TemporaryDirectory() as folder:
            job, out = Path(folder) / "job.json", Path(folder) / "out.jsonl"
            job.write_text(json.dumps({"cells": [asdict(c) for c in members], "out": str(out)}))
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            processes = []
            for process_rank in range(world) if backend == "gloo" else [rank]:
                env = os.environ | {
                    "RANK": str(process_rank),
                    "LOCAL_RANK": str(process_rank if backend == "gloo" else 0),
                    "WORLD_SIZE": str(world),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": str(port),
                    "DS_ACCELERATOR": "cpu",
                    "OMP_NUM_THREADS": "1",
                }
                command = [sys.executable, __file__, "--worker", str(job)]
                processes.append(subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL))
            codes = [process.wait() for process in processes]
            if any(codes):
                raise SystemExit(f"{backend}, {world} ranks: a process failed")
            for text in out.read_text().splitlines():
                result = json.loads(text)
                yield members[result["number"]], result["measured"]


def work(job: dict[str, Any]) -> None:
    """One process of a group: trains every cell for three steps under the profiler."""
    import torch

    from diffcore import engine
    from diffcore.world import World

    cells = [Cell(**cell) for cell in job["cells"]]
    world = cells[0].world
    if cells[0].backend == "fake":
        import deepspeed
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", rank=cells[0].rank, world_size=world, store=FakeStore())
        # A fake collective leaves its output as it found it, which may hold anything: even NaN, and no step.
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor"):
            setattr(torch.distributed, name, zeroing(getattr(torch.distributed, name)))
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        torch.set_num_threads(1)
        # Ranks compare what they recorded with rank 0, of which a fake group hears nothing.
        coordinator = deepspeed.runtime.zero.partitioned_param_coordinator
        coordinator.assert_ints_same_as_other_ranks = lambda *_, **__: None
        place = World(cells[0].rank, world, 0, torch.device("cpu"))
    else:
        settle_collectives()
        place = engine.start(1)
    for number, cell in enumerate(cells):
        measured = observe(cell, place)
        gc.collect()
        if cell.backend == "fake" or place.rank == cell.rank:
            with Path(job["out"]).open("a") as out:
                out.write(json.dumps({"number": number, "measured": measured}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down


def zeroing(function: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        work = function(*args, **named)
        output = args[0] if args else named.get("output_tensor", named.get("output"))
        output.zero_()
        return work

    return call


def settle_collectives() -> None:
    """Have every collective wait until gloo's thread has let go of its tensors.

    The profiler sees the thread that it was started in. A tensor freed last by gloo would look alive.
    """
    import torch

    class Settled:
        def __init__(self, work: Any) -> None:
            self.work = work

        def wait(self) -> None:
            self.work.wait()
            time.sleep(SETTLE)
            self.work = None

    def settled(function: Any) -> Any:
        def call(*args: Any, async_op: bool = False, **named: Any) -> Any:
            work = Settled(function(*args, async_op=True, **named))
            return work if async_op else work.wait()

        return call

    for name in ("all_reduce", "all_gather_into_tensor", "reduce_scatter_tensor", "broadcast", "all_gather"):
        setattr(torch.distributed, name, settled(getattr(torch.distributed, name)))


def observe(cell: Cell, world: Any) -> dict[str, Any]:
    import torch
    from torch.profiler import ProfilerActivity, profile, record_function

    from diffcore import engine, models
    from diffcore.diffusion.loss import WEIGHTS, denoising_loss
    from diffcore.diffusion.randomness import Draws
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.ema import Ema
    from shards.attributes import CARTOON_SET, Attribute

    config = config_of(cell)
    schema = [Attribute("class", 10)] if cell.model.startswith("ddpm") else list(CARTOON_SET)
    size, states = MODELS[cell.model][2], {}
    gc.disable()  # checkpointing leaves cycles; when they are collected is nobody's choice
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        prepared = models.prepare(models.build(config.model, schema, size), config.engine)
        network = engine.Engine(prepared, config, world)
        ema = Ema(network, config.ema)
        schedule = NoiseSchedule.of(config.diffusion)
        weights = WEIGHTS[config.diffusion.loss_weight](schedule)
        images, eps = torch.randn(cell.micro, 3, size, size), torch.randn(cell.micro, 3, size, size)
        labels = torch.zeros(cell.micro, len(schema), dtype=torch.int64)
        draws = Draws(
            eps_BCHW=eps,
            t_B=torch.randint(0, config.diffusion.timesteps, (cell.micro,)),
            keep_B=torch.ones(cell.micro, dtype=torch.bool),
        )
        for step in range(3):
            for _ in range(cell.accumulation):
                with record_function(f"#forward {step}"):
                    loss = denoising_loss(network, schedule, weights, images, labels, draws).mean()
                with record_function(f"#backward {step}"):
                    network.backward(loss)
                    del loss
                if step == 2:
                    states["gradients"] = storages(network.memory(), "gradients")
                with record_function(f"#step {step}"):
                    network.step(1e-4)
            with record_function(f"#average {step}"):
                ema.update(step)
        states |= {name: storages(network.memory(), name) for name in ("parameters", "masters", "optimizer")}
    network._engine.destroy()

    changes, spans = events_of(prof.profiler.kineto_results.experimental_event_tree())
    result: dict[str, Any] = {"backward peak": 0, "with scratch": 0}
    held = scratch = at = 0
    for start, end, phase in sorted(spans):
        peak, whole = 0, 0
        while at < len(changes) and changes[at][0] < end:
            time_ns, size, inside = changes[at]
            if inside:
                scratch += size
            else:
                held += size
            if time_ns >= start:
                peak, whole = max(peak, held), max(whole, held + scratch)
            at += 1
        if phase in ("forward", "backward"):
            result["backward peak"] = max(result["backward peak"], peak)
            result["with scratch"] = max(result["with scratch"], whole)
        if phase == "step":  # of the micro batches only the last one steps
            result["step peak"] = peak
        if phase == "forward":
            result["activations"] = held
        if phase == "average":
            result["after step"] = held
    return result | {"states": states}


def events_of(tree: list[Any]) -> tuple[list[tuple[int, int, bool]], list[tuple[int, int, str]]]:
    """(time, bytes, whether a kernel's scratch) of every allocation and free, and the last step's spans.

    Scratch is what one kernel allocates and frees itself: a convolution's reordered weights and fp32 sums,
    the buffers of the CPU's fused attention. A GPU's kernels have others.
    """
    changes: list[tuple[int, int, bool]] = []
    spans: list[tuple[int, int, str]] = []
    open_at: dict[int, tuple[int, Any]] = {}
    stack = list(reversed(tree))
    order = []
    while stack:
        event = stack.pop()
        order.append(event)
        stack.extend(reversed(event.children))
        if event.name.startswith("#") and event.name.endswith(" 2"):
            spans.append((event.start_time_ns, event.end_time_ns, event.name[1:-2]))
    for event in sorted(order, key=lambda event: event.start_time_ns):
        if event.name != "[memory]":
            continue
        size, address = event.typed[1].alloc_size, event.typed[1].ptr
        if size > 0:
            open_at[address] = (len(changes), kernel_of(event))
        elif address in open_at:
            number, kernel = open_at.pop(address)
            if kernel is not None and kernel == kernel_of(event):
                changes[number] = (*changes[number][:2], True)
                changes.append((event.start_time_ns, size, True))
                continue
        changes.append((event.start_time_ns, size, False))
    return changes, spans


def kernel_of(event: Any) -> Any:
    """The operator whose kernel an allocation is made in: one of KERNELS, or the one right above."""
    above = event.parent
    while above is not None:
        if above.name.startswith(KERNELS):
            return above
        above = above.parent
    direct = event.parent
    return direct if direct is not None and direct.name.startswith("aten::") else None


def storages(memory: dict[str, Any], name: str) -> int:
    """Bytes of the distinct storages of a category, those of the categories before it left out."""
    seen: dict[int, int] = {}
    for category, tensors in memory.items():
        found = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        if category == name:
            return sum(size for address, size in found.items() if address not in seen)
        seen |= found
    raise KeyError(name)


if __name__ == "__main__":
    main()
