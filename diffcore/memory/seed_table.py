"""docs/seed-memory.md: where the 22,616 MiB of the avatar model went, planned and set beside what was seen.

The figures of the model that this one follows, an avatar UNet of 76,464,439 parameters in fp32 at batch 128
and 64 x 64 pixels on an A10G: weights 291.69 MiB, Adam 583.38, gradients 291.69, all module outputs 18,319,
nvidia-smi 22,616. The table below them is planned for configs/avatar-adamw.yaml; nothing was run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from diffbase.files import write_atomic
from diffbase.shipped import shipped
from diffcore import models
from diffcore.config.configure import load, replace
from diffcore.config.diffusion import FIRST_DRAWS
from diffcore.config.tree import Config
from diffcore.memory.advise import Planner
from diffcore.memory.planning.plan import Data, Plan
from shards.schema import CARTOON_SET

MIB = 2**20
BATCH = 128
FOLLOWED = 76_464_439
SMI = 22_616
OUTPUTS = 18_319


def write(path: Path) -> Path:
    """Write ``text`` to ``path``, and return it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text().encode())
    return path


def text() -> str:
    """The whole page, in Markdown."""
    config = replace(
        load(shipped("configs", "avatar-adamw.yaml")), "engine", {"zero": 0, "precision": "fp32"}
    )
    config = replace(config, "batch", {"size": BATCH, "micro": BATCH})
    config = replace(config, "diffusion", {"draws": FIRST_DRAWS})  # as it was measured: docs/gpu.md
    data = Data(tuple(CARTOON_SET), 64)
    planner = Planner(config, data)
    planned = planner.plan(config, 1)
    return "\n".join(
        [*_heading(), *_states(planned), *_where(planned, outputs(config, data)), *_remedies(planner), ""]
    )


def outputs(config: Config, data: Data) -> int:
    """Bytes of all module outputs of one forward: every module's, leaf or not, at each call."""
    total = 0

    def count(module: Any, inputs: Any, output: Any) -> None:
        nonlocal total
        if isinstance(output, Tensor):
            total += output.numel() * output.element_size()

    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        network = models.build(config.model, data.schema, data.size)
        for module in network.modules():
            module.register_forward_hook(count)
        micro = config.batch.micro or config.batch.size
        network(*models.example_batch(micro, data.schema, data.size))
    return total


def _heading() -> list[str]:
    return [
        "# Where the memory of the avatar model goes",
        "",
        "Made by `python -m diffcore.memory seed-table`. Every figure of ours is planned;",
        "docs/gpu.md has the same configs measured on a GPU.",
        "The model that `configs/avatar-adamw.yaml` follows was trained by its author in fp32 at batch 128",
        "and 64 x 64 pixels on an A10G of 24 GB; the figures of it here are that author's.",
        "MiB throughout.",
        "",
    ]


def _states(planned: Plan) -> list[str]:
    ours = planned.parameters
    rows = [("weights", 4), ("Adam's two moments", 8), ("gradients", 4)]
    lines = [
        "## States",
        "",
        f"| | bytes a parameter | {FOLLOWED:,} parameters | {ours:,} (ours), planned |",
        "|---|---:|---:|---:|",
    ]
    for name, size in rows:
        lines.append(f"| {name} | {size} | {FOLLOWED * size / MIB:,.2f} | {ours * size / MIB:,.2f} |")
    lines += [
        f'| "activations and temporary memory (high end)" | 8 | {FOLLOWED * 8 / MIB:,.2f} | |',
        f"| sum of these rows | 24 | {FOLLOWED * 24 / MIB:,.2f} | |",
        f"| total as it was stated | 32 | {FOLLOWED * 32 / MIB:,.2f} | |",
        "",
        "The rows add up to 24 bytes a parameter, not to the 32 that the stated total is made of, and",
        "neither has much to do with activations: those follow the batch and the pixels.",
        "",
    ]
    return lines


def _where(planned: Plan, outputs: int) -> list[str]:
    peak = planned.peak
    saved = planned.at("after forward").bytes["activations"]
    lines = [
        "## nvidia-smi's number",
        "",
        "| | followed model, as published | ours, planned |",
        "|---|---:|---:|",
        f"| activations, all module outputs | {OUTPUTS:,} | {outputs / MIB:,.0f} |",
        f"| activations, what is kept for backward, each storage once | | {saved / MIB:,.0f} |",
    ]
    for name, size in peak.bytes.items():
        if size and name != "activations":
            lines.append(f"| {name} at the peak | | {size / MIB:,.0f} |")
    held = planned.reserved - peak.allocated
    lines += [
        f"| activations at the peak | | {peak.bytes['activations'] / MIB:,.0f} |",
        f"| allocator: rounding, fragments, cache | | {held / MIB:,.0f} |",
        f"| library workspaces (assumed) | | {planned.outside.workspaces / MIB:,.0f} |",
        f"| CUDA context (assumed) | | {planned.outside.context / MIB:,.0f} |",
        f"| NCCL, of a group of one rank too (assumed) | | {planned.outside.nccl / MIB:,.0f} |",
        f"| nvidia-smi | {SMI:,} | {planned.smi / MIB:,.0f} |",
        f"| left unexplained | {SMI - OUTPUTS - FOLLOWED * 16 / MIB:,.0f} | a plan has no remainder |",
        "",
        "The two columns are two networks: the followed one's code is lost, ours has its size and ladder.",
        "Its author's figures leave some 3,130 MiB open. A sum of module outputs has no counterpart on the",
        "GPU: it counts what nobody keeps, and leaves out the copies inside a module, the gradients of",
        "activations in backward, the allocator's slack and the CUDA context. Ours are planned one by one.",
        "",
    ]
    return lines


def _remedies(planner: Planner) -> list[str]:
    """Each remedy alone, and several together, beside the plain settings."""
    alone: list[tuple[str, dict[str, Any], int]] = [
        ("as above", {}, 1),
        ("activation checkpointing, selective", {"checkpointing": "selective"}, 1),
        ("activation checkpointing, full", {"checkpointing": "full"}, 1),
        ("bf16 by autocast (ZeRO-0)", {"precision": "bf16"}, 1),
        ("bf16 (ZeRO-1's masters)", {"precision": "bf16", "zero": 1}, 1),
        ("bf16 and full checkpointing", {"precision": "bf16", "zero": 1, "checkpointing": "full"}, 1),
    ]
    shared: list[tuple[str, dict[str, Any], int]]
    shared = [(f"fp32, ZeRO-{zero} over 8 GPUs", {"zero": zero}, 8) for zero in range(4)]
    shared += [(f"bf16, ZeRO-{z} over 8 GPUs", {"zero": z, "precision": "bf16"}, 8) for z in (1, 2, 3)]
    lines = [
        "## What each remedy saves",
        "",
        f"Micro batch {BATCH} on every GPU. From ZeRO-1 on buckets come on top, each an eighth of",
        "the network (`auto` in `configs/deepspeed`): fixed ones of 50 million had made ZeRO-1 to 3 take",
        "more than ZeRO-0 in fp32. ZeRO-3 keeps less, and the allocator's fragments cost it more here.",
        "",
        "| | states after the step | peak of tensors | nvidia-smi | saved |",
        "|---|---:|---:|---:|---:|",
    ]
    first = None
    for name, values, world in [*alone, *shared]:
        config = replace(planner.config, "engine", values) if values else planner.config
        planned = planner.plan(planner.with_micro(config, BATCH, world), world)
        first = first or planned.smi
        after, peak = planned.moments[-1].allocated, planned.peak.allocated
        lines.append(
            f"| {name} | {after / MIB:,.0f} | {peak / MIB:,.0f} | {planned.smi / MIB:,.0f} "
            f"| {(first - planned.smi) / MIB:,.0f} |"
        )
    return lines
