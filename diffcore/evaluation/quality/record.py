"""What stays of an evaluation: quality.json, quality.html, TensorBoard and the terminal."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from diffbase.files import write_json
from diffbase.line import printable, say
from diffbase.page.kit import percent
from diffbase.tables import TextTable
from diffcore.evaluation.judging.fidelity import words
from diffcore.evaluation.quality import report
from diffcore.evaluation.quality.measure import Quality
from diffcore.runs.model import TrainedModel


def write(out: Path, run: Path, weights: str, model: TrainedModel, quality: Quality) -> dict[str, Any]:
    """Both files and TensorBoard's into ``out``; returns the figures."""
    out.mkdir(parents=True, exist_ok=True)
    figures = {"run": str(run), "weights": weights, **quality.figures}
    write_json(out / "quality.json", figures)
    report.write(out / report.FILE, f"Quality of {run.name}", quality, model.schema)
    with SummaryWriter(out / "tensorboard") as writer:
        for tag, value in scalars({k: v for k, v in figures.items() if k != "sampling"}).items():
            writer.add_scalar(f"evaluate/{tag}", value, model.step)
        if (fidelity := figures.get("fidelity")) is not None:
            writer.add_scalar("evaluate/fidelity/attributes_in_mean", fidelity["count"], model.step)
            said = (
                fidelity["refused"] or f"The mean is over {fidelity['title']}: {', '.join(fidelity['over'])}"
            )
            writer.add_text("evaluate/fidelity/mean", printable(said), model.step)
    return figures


def show(figures: dict[str, Any], title: str) -> None:
    """The figures as a table and lines."""
    if (fidelity := figures.get("fidelity")) is not None:
        headings = ("attribute", "as asked", "95 % interval", "judge on real images", "in the mean")
        table = TextTable(title, *headings)
        for name, row in fidelity["attributes"].items():
            table.add_row(
                name,
                percent(row["share"]),
                f"{percent(row['low'])} to {percent(row['high'])}",
                percent(row["judge_on_real_images"]["share"]),
                "yes" if name in fidelity["over"] else "no",
            )
        if (mean := fidelity["mean"]) is not None:
            table.add_section()
            table.add_row(
                f"HEADLINE, {fidelity['title']}",
                percent(mean["mean"]),
                f"{percent(mean['low'])} to {percent(mean['high'])}",
                percent(fidelity["ceiling"]["mean"]),
            )
        table.print()
    others = {name: value for name, value in figures.items() if name not in ("fidelity", "sampling")}
    for name, value in scalars(others).items():
        print(f"{printable(name)} {value:.4g}")
    if fidelity is not None:
        for line in words(fidelity):
            say(line)


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
