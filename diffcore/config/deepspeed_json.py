"""DeepSpeed's own settings: its JSON file, with what the YAML decides filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.formats import json_file
from diffcore.config.buckets import filled
from diffcore.config.offload import OFFLOADS
from diffcore.config.tree import Config

# Set from the config or computed by Batch.split: a second place could contradict the first.
OURS = (
    "train_batch_size",
    "train_micro_batch_size_per_gpu",
    "gradient_accumulation_steps",
    "gradient_clipping",
)
OF_SUMS = ("communication_data_type", "prescale_gradients", "gradient_predivide_factor", "sparse_gradients")
"""How DeepSpeed is to sum gradients over the ranks, where not simply."""
MOST = 1 << 20
"""Bytes of the largest file that is read."""


def settings(config: Config, world_size: int, numels: Sequence[int] | None = None) -> dict[str, Any]:
    """DeepSpeed's JSON with what the config decides filled in. InputError if the JSON decides it too.

    ``numels``: elements of each of the network's parameters, for sizes that are "auto" (buckets.py).
    """
    path = config.engine.json_path
    tree = json_file.read(path, "no such file (engine.deepspeed)", MOST)
    if not isinstance(tree, dict) or not isinstance(tree.get("zero_optimization", {}), dict):
        raise InputError(f"{path}: expected an object with an object zero_optimization in it")
    for key in (*OURS, "bf16", "fp16", "optimizer", "scheduler"):
        if key in tree:
            raise InputError(f"{path}: {key} belongs in the YAML (batch, engine, optimizer), not here")
    stage = tree.get("zero_optimization", {}).get("stage")
    if stage != config.engine.zero:
        said = "missing" if stage is None else stage
        raise InputError(f"{path}: zero_optimization.stage is {said}, engine.zero is {config.engine.zero}")
    micro, accumulation = config.batch.split(world_size)
    zero = filled(tree.get("zero_optimization", {}), numels)
    return tree | {
        "train_batch_size": config.batch.size,
        "train_micro_batch_size_per_gpu": micro,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.engine.gradient_clipping,
        **config.engine.arithmetic.settings,
        "zero_optimization": zero,
        **_offload(config, zero),
        "steps_per_print": 2**62,
        # It waits for the GPU twice in each micro batch, for a line that nobody prints.
        "timers": {"throughput": {"enabled": False}} | _section(path, tree, "timers"),
    }


def sums_simply(tree: dict[str, Any]) -> bool:
    """Whether these settings have gradients summed as they are and divided by the number of ranks."""
    return not any(key in tree for key in OF_SUMS)


def _section(path: Path, tree: dict[str, Any], name: str) -> dict[str, Any]:
    section = tree.get(name, {})
    if not isinstance(section, dict):
        raise InputError(f"{path}: {name} is {section!r}, expected an object")
    return section


def _offload(config: Config, zero: dict[str, Any]) -> dict[str, Any]:
    if config.engine.offload == "none":
        return {}
    offloaded = zero | dict(OFFLOADS[config.engine.offload].zero)
    # torch's own fused AdamW steps on the CPU too; DeepSpeed's would be compiled on the first start.
    return {"zero_optimization": offloaded, "zero_force_ds_cpu_optimizer": False}
