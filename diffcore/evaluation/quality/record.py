"""What stays of an evaluation: quality.json, quality.html, TensorBoard and the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from diffbase.cli import finite
from diffbase.files import write_json
from diffbase.line import printable
from diffbase.tables import TextTable
from diffcore.evaluation.quality import report
from diffcore.evaluation.quality.measure import Quality
from diffcore.runs.model import TrainedModel


def write(out: Path, run: Path, weights: str, model: TrainedModel, quality: Quality) -> dict[str, Any]:
    """Both files into ``out``, the figures to the run's TensorBoard; returns the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {"run": str(run), "weights": weights, **quality.figures}
    write_json(out / "quality.json", finite(figures))
    report.write(out / report.FILE, f"Quality of {run.name}", quality, model.schema)
    with SummaryWriter(run / "tensorboard") as writer:
        for tag, value in scalars({k: v for k, v in figures.items() if k != "sampling"}).items():
            writer.add_scalar(f"evaluate/{tag}", value, model.step)
    return figures


def show(figures: dict[str, Any], title: str) -> None:
    """The figures as a table and lines."""
    if (fidelity := figures.get("fidelity")) is not None:
        headings = ("attribute", "as asked", "95 % interval", "judge on real images", "in the mean")
        table = TextTable(title, *headings)
        for name, row in fidelity["attributes"].items():
            table.add_row(
                name,
                f"{row['share']:.1%}",
                f"{row['low']:.1%} to {row['high']:.1%}",
                f"{row['judge_on_real_images']['share']:.1%}",
                "yes" if name in fidelity["over"] else "no",
            )
        mean, ceiling = fidelity["mean"], fidelity["ceiling"]
        table.add_section()
        table.add_row(
            f"mean of {len(fidelity['over'])}",
            f"{mean['mean']:.1%}",
            f"{mean['low']:.1%} to {mean['high']:.1%}",
            f"{ceiling['mean']:.1%}",
        )
        table.print()
    others = {name: value for name, value in figures.items() if name not in ("fidelity", "sampling")}
    for name, value in scalars(others).items():
        print(f"{printable(name)} {value:.4g}")


def scalars(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures as flat ones "a/b"; an interval becomes its middle, and what is nan is left out."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            middle = value.get("share", value.get("mean"))
            if "low" in value and isinstance(middle, float):
                flat |= scalars({name: middle}, prefix)
            else:
                flat |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, float) and not math.isnan(value):
            flat[prefix + name] = value
    return flat
