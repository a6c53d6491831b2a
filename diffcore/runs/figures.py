"""A finished or running run in a few figures, from its folder alone. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffbase import jsonl
from diffbase.cli import InputError


def numbers(run: Path) -> dict[str, str]:
    """The figures of a run folder by name, as text; what was not measured is left out."""
    training = [line for line in jsonl.read(run / "metrics.jsonl") if "train/loss" in line]
    if not training:
        raise InputError(f"{run}: no step was logged yet")
    last = training[-1]
    rates = sorted(line["train/images_per_second"] for line in training)
    result = {
        "steps": f"{last['step']:,}",
        "images trained on": f"{last['train/samples']:,}",
        "loss, first and last line": f"{training[0]['train/loss']:.4f}, {last['train/loss']:.4f}",
        "images a second, median": f"{rates[len(rates) // 2]:.1f}",
    }
    memory = _read(run / "anatomy.json")
    if memory:
        rank = memory["measured"][0]
        peak = max(rank["moments"], key=lambda moment: moment["allocated"])
        result["parameters"] = f"{rank['parameters']:,}"
        result["tensors of rank 0 at its peak"] = f"{peak['allocated'] / 2**20:,.0f} MiB"
        result["of it activations"] = f"{peak['bytes']['activations'] / 2**20:,.0f} MiB"
    colors = _read(run / "colors.json")
    for name, row in (colors or {}).get("agreement", {}).items():
        result[f"{name} as asked, {row['samples']} samples"] = f"{row['asked']:.1%}"
        result[f"{name}, control: real images"] = f"{row['real_images']:.1%}"
        result[f"{name}, control: shuffled wishes"] = f"{row['shuffled_wishes']:.1%}"
    return result


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
