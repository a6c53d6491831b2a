"""A finished or running run in a few figures, from its folder alone. Imports no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffbase import jsonl
from diffbase.cli import InputError


def figures(run: Path) -> dict[str, Any]:
    """The figures of a run folder; what was not measured is left out. InputError if nothing was logged."""
    training = [line for line in jsonl.read(run / "metrics.jsonl") if "train/loss" in line]
    if not training:
        raise InputError(f"{run}: no step was logged yet")
    last = training[-1]
    rates = sorted(line["train/images_per_second"] for line in training)
    result = {
        "step": last["step"],
        "samples": last["train/samples"],
        "loss_first": training[0]["train/loss"],
        "loss_last": last["train/loss"],
        "images_per_second": rates[len(rates) // 2],
    }
    if memory := _read(run / "anatomy.json"):
        rank = memory["measured"][0]
        peak = max(rank["moments"], key=lambda moment: moment["allocated"])
        result["parameters"] = rank["parameters"]
        result["peak_bytes"] = peak["allocated"]
        result["peak_activation_bytes"] = peak["bytes"]["activations"]
    if colors := _read(run / "colors.json"):
        result["colors"] = colors["agreement"]
    return result


def numbers(figures: dict[str, Any]) -> dict[str, str]:
    """The same in words, by name."""
    f = figures
    result = {
        "steps": f"{f['step']:,}",
        "images trained on": f"{f['samples']:,}",
        "loss, first and last line": f"{f['loss_first']:.4f}, {f['loss_last']:.4f}",
        "images a second, median": f"{f['images_per_second']:.1f}",
    }
    if "parameters" in f:
        result["parameters"] = f"{f['parameters']:,}"
        result["tensors of rank 0 at its peak"] = f"{f['peak_bytes'] / 2**20:,.0f} MiB"
        result["of it activations"] = f"{f['peak_activation_bytes'] / 2**20:,.0f} MiB"
    for name, row in f.get("colors", {}).items():
        result[f"{name} as asked, {row['samples']} samples"] = f"{row['asked']:.1%}"
        result[f"{name}, control: real images"] = f"{row['real_images']:.1%}"
        result[f"{name}, control: shuffled wishes"] = f"{row['shuffled_wishes']:.1%}"
    return result


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None
