"""python benchmarks/memory_observed.py JOB.json: one process of a group, for memory_truth.py.

Trains every cell of the job for three steps (two but under ZeRO-3) under torch's profiler, which reports each
allocation and free of the CPU allocator from before the network is built. Knows nothing of the plan.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from memory_cells import MODELS, Cell, config_of

KERNELS = ("aten::convolution", "aten::_scaled_dot_product_flash_attention_for_cpu")
"""Operators that call others inside their CPU kernels."""
LINEAR = torch.nn.functional.linear


def work(job: dict[str, Any]) -> None:
    """One process of a group."""
    from diffcore.engine import process_group
    from diffcore.engine.ranks import World

    cells = [Cell(**cell) for cell in job["cells"]]
    world = cells[0].world
    if cells[0].backend == "fake":
        import deepspeed
        from torch.testing._internal.distributed.fake_pg import FakeStore

        torch.distributed.init_process_group("fake", rank=cells[0].rank, world_size=world, store=FakeStore())
        # A fake collective leaves its output as it found it, which may hold anything: even NaN, and no step.
        for name in ("all_gather_into_tensor", "reduce_scatter_tensor", "all_to_all_single"):
            setattr(torch.distributed, name, zeroing(getattr(torch.distributed, name)))
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(dist_backend="gloo", verbose=False)
        torch.set_num_threads(1)
        # Ranks compare what they recorded with rank 0, of which a fake group hears nothing.
        coordinator = deepspeed.runtime.zero.partitioned_param_coordinator
        coordinator.assert_ints_same_as_other_ranks = lambda *_, **__: None
        place = World(cells[0].rank, world, 0, torch.device("cpu"))
    else:
        settle_collectives(job["settle"])
        place = process_group.start(Path(job["out"]).parent, 1)
    until = time.monotonic() + job["seconds"]
    for number, cell in enumerate(cells):
        if number and not agreed(time.monotonic() < until, cell):
            break
        measured = observe(cell, place)
        gc.collect()
        if cell.backend == "fake" or place.rank == cell.rank:
            with Path(job["out"]).open("a") as out:
                out.write(json.dumps({"number": number, "measured": measured}) + "\n")
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may abort an interpreter that shuts down


def agreed(mine: bool, cell: Cell) -> bool:
    """Whether there is time for another cell on every rank."""
    said = torch.tensor(float(mine))
    if cell.backend == "gloo":
        torch.distributed.all_reduce(said, op=torch.distributed.ReduceOp.MIN)
    return bool(said)


def zeroing(function: Any) -> Any:
    def call(*args: Any, **named: Any) -> Any:
        work = function(*args, **named)
        output = args[0] if args else named.get("output_tensor", named.get("output"))
        output.zero_()
        return work

    return call


def settle_collectives(seconds: float) -> None:
    """Have every collective over and done where it begins: ``seconds`` later gloo's thread has let go.

    gloo's own thread holds tensors and copies for as long as it happens to take, beside what goes on here:
    two runs would not measure the same. Where DeepSpeed overlaps collectives, one over gloo may hold a copy
    more. The profiler sees the thread that it was started in: freed by gloo's, a tensor would look alive.
    """

    class Done:
        def wait(self, *_: Any) -> bool:
            return True

        is_completed = wait

    def settled(function: Any) -> Any:
        def call(*args: Any, async_op: bool = False, **named: Any) -> Any:
            work = function(*args, async_op=True, **named)
            work.wait()
            time.sleep(seconds)  # until gloo's thread has let go, so that what work holds is freed here
            del work
            return Done() if async_op else None

        return call

    for name in (
        "all_reduce",
        "all_gather_into_tensor",
        "reduce_scatter_tensor",
        "broadcast",
        "all_gather",
        "all_to_all_single",
    ):
        setattr(torch.distributed, name, settled(getattr(torch.distributed, name)))


def observe(cell: Cell, world: Any) -> dict[str, Any]:
    from deepspeed.runtime import torch_autocast
    from torch.nn import functional as F
    from torch.profiler import ProfilerActivity, profile, record_function

    from diffcore import models
    from diffcore.diffusion.loss import WEIGHTS, denoising_loss
    from diffcore.diffusion.randomness import Draws
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.engine import construction
    from diffcore.engine.ema import Ema
    from diffcore.engine.engine import Engine
    from shards.schema import CARTOON_SET, Attribute

    # DeepSpeed changes both for the whole process.
    torch_autocast.TORCH_AUTOCAST_INITIALIZED = False
    F.linear = LINEAR
    config = config_of(cell)
    schema = [Attribute("class", 10)] if cell.model.startswith("ddpm") else list(CARTOON_SET)
    size, states = MODELS[cell.model][2], {}
    gc.disable()  # checkpointing leaves cycles; when they are collected is nobody's choice
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        built = construction.build(lambda: models.build(config.model, schema, size), config, world)
        network = Engine(models.prepare(built, config.engine), config, world)
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
        # By the last step Adam has its moments, and ZeRO-3 has seen its order of modules twice.
        last = 2 if cell.zero == 3 else 1
        for step in range(last + 1):
            for _ in range(cell.accumulation):
                with record_function(f"#forward {step}"):
                    loss = denoising_loss(network, schedule, weights, images, labels, draws).mean()
                with record_function(f"#backward {step}"):
                    network.backward(loss)
                    del loss
                if step == last:
                    states["gradients"] = storages(network.memory(), "gradients")
                with record_function(f"#step {step}"):
                    network.step(1e-4)
            with record_function(f"#average {step}"):
                ema.update(step)
        states |= {name: storages(network.memory(), name) for name in ("parameters", "masters", "optimizer")}
    network._engine.destroy()

    changes, spans = events_of(prof.profiler.kineto_results.experimental_event_tree(), last)
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


def events_of(tree: list[Any], last: int) -> tuple[list[tuple[int, int, bool]], list[tuple[int, int, str]]]:
    """(time, bytes, whether a kernel's scratch) of every allocation and free, and step ``last``'s spans.

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
        if event.name.startswith("#") and event.name.endswith(f" {last}"):
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
    work(json.loads(Path(sys.argv[1]).read_text()))
