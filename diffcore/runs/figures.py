"""A finished or running run in a few figures, from its folder alone. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from diffcore.memory import anatomy, promise
from diffcore.runs import metrics

NEEDED = {"train/loss", "train/images_per_second", "train/samples"}
SPENT = ("images", "flops", "cpu_seconds")
"""What a run has cost (``training.meters.costs``)."""
Share = Annotated[float, Field(ge=0, le=1)]


class Agreement(BaseModel):
    """How often a colour is as asked, beside the two controls."""

    model_config = ConfigDict(strict=True, extra="ignore")

    samples: Annotated[int, Field(ge=0, le=2**53)]
    asked: Share
    real_images: Share
    shuffled_wishes: Share


class Colors(BaseModel):
    """colors.json (``diffcore.evaluation.colors``)."""

    model_config = ConfigDict(extra="ignore")

    agreement: Annotated[dict[Annotated[str, Field(max_length=200)], Agreement], Field(max_length=10_000)]


def figures(run: Path) -> dict[str, Any]:
    """The figures of a run folder; what was not measured is left out.

    InputError if nothing was logged, and for a record that is damaged.
    """
    left_out: list[int] = []
    training = [line for line in metrics.read(run, left_out) if line.keys() >= NEEDED]
    if not training:
        damaged = f" ({len(left_out)} lines of {metrics.FILE} cannot be read)" if left_out else ""
        raise InputError(f"{run}: no step was logged yet{damaged}")
    last = training[-1]
    rates = sorted(line["train/images_per_second"] for line in training)
    result = {
        "step": last["step"],
        "samples": last["train/samples"],
        "loss_first": training[0]["train/loss"],
        "loss_last": last["train/loss"],
        "images_per_second": rates[len(rates) // 2],
    }
    if spent := spent_of(last):
        result["spent"] = spent
    if left_out:
        result["damaged_lines"] = len(left_out)
    if (run / "anatomy.json").exists() and (ranks := anatomy.load(run)["measured"]):
        peak = max(ranks[0]["moments"], key=lambda moment: int(moment["allocated"]))
        result["parameters"] = ranks[0]["parameters"]
        result["peak_bytes"] = peak["allocated"]
        result["peak_activation_bytes"] = peak["bytes"].get("activations", 0)
    if (beside := promise.beside(run)) is not None:
        result["promise"] = beside
    if (colors := run / "colors.json").exists():
        told = validated(Colors, json_file.read(colors), str(colors))
        result["colors"] = told.model_dump(exclude_unset=True)["agreement"]
    return result


def spent_of(line: Mapping[str, Any]) -> dict[str, float]:
    """What a run has cost by a line of its log: images, flops, cpu_seconds, where it says all."""
    found: dict[str, Any] = {name: line.get(f"spent/{name}") for name in SPENT}
    return found if all(map(_is_cost, found.values())) else {}


def _is_cost(value: Any) -> bool:
    """A log that others could write, or that was cut off, may say anything."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def spent_words(spent: Mapping[str, float]) -> str:
    """The same in words, whole or in part: 21,600 images, 423.4 TFLOP, 1,234 CPU seconds."""
    words = []
    if "images" in spent:
        words.append(f"{spent['images']:,.0f} images")
    if "flops" in spent:
        words.append(flops_words(spent["flops"]))
    if "cpu_seconds" in spent:
        words.append(f"{spent['cpu_seconds']:,.0f} CPU seconds")
    return ", ".join(words)


def flops_words(flops: float) -> str:
    """Floating-point operations with a prefix, four digits: 423.4 TFLOP."""
    for power, prefix in ((18, "E"), (15, "P"), (12, "T"), (9, "G")):
        if flops >= 10**power:
            return f"{flops / 10**power:,.4g} {prefix}FLOP"
    return f"{flops:,.0f} FLOP"


def numbers(figures: dict[str, Any]) -> dict[str, str]:
    """The same in few lines for people, by name."""
    f = figures
    size = f", {f['parameters']:,} parameters" if "parameters" in f else ""
    rate = f"{f['images_per_second']:,.0f} images/s"
    result = {
        "trained": f"{f['step']:,} steps, {f['samples']:,} images, {rate}{size}",
        "loss": f"{f['loss_first']:.4f} at first, {f['loss_last']:.4f} at last",
    }
    if "spent" in f:
        result["trained"] += f"; {spent_words({k: v for k, v in f['spent'].items() if k != 'images'})}"
    if "damaged_lines" in f:
        result["damaged"] = f"{f['damaged_lines']:,} lines of {metrics.FILE} cannot be read"
    result |= {name: agreed(row) for name, row in f.get("colors", {}).items()}
    if "peak_bytes" in f:
        result["memory"] = (
            f"{f['peak_bytes'] / 2**20:,.0f} MiB of tensors at rank 0's peak, "
            f"{f['peak_activation_bytes'] / 2**20:,.0f} MiB of them activations"
        )
    return result | (promise.rows(f["promise"]) if "promise" in f else {})


def agreed(row: Mapping[str, Any]) -> str:
    """A row of colors.json in a line."""
    asked, real, shuffled = (f"{row[key]:.1%}" for key in ("asked", "real_images", "shuffled_wishes"))
    return f"{asked} of {row['samples']} as asked (real images {real}, shuffled wishes {shuffled})"
