"""Does a fast sampler stay faithful under guidance? Each beside DDPM over all timesteps, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffbase.files import write_atomic, write_json
from diffbase.shipped import shipped
from diffcore.config import configure
from diffcore.config.samplers import SAMPLERS
from diffcore.engine.ranks import World, gather
from diffcore.evaluation.judging.headline import title
from diffcore.evaluation.studies import experiments
from diffcore.evaluation.studies.cells import Cell, Table

CONFIG = shipped("configs", "experiments", "guidance.yaml")
RIVALS: tuple[dict[str, Any], ...] = (
    {"sampler": "dpm++sde", "steps": 20},
    {"sampler": "dpm++", "steps": 20},
    {"sampler": "ddim", "steps": 20},
)
WITHIN = 0.02


def make_run(world: World, say: Callable[[str], None]) -> Path:
    """Train the experiment's run, with its data and its judge; what is there is found again."""
    config = configure.load(CONFIG)
    if world.main:
        data = config.data.path
        assert isinstance(data, Path)
        experiments.prepare(data, 16, say)
        say(f"training {config.run}")
        experiments.run("-m", "diffcore.train", "--config", CONFIG)
    gather(None, world)
    return config.run


def compare(
    table: Table, scales: Sequence[float], out: Path, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """Draw every cell; the page and its figures are written anew after every scale. Returns the figures."""
    cells: list[tuple[Cell, list[Cell]]] = []
    figures: list[dict[str, Any]] = []
    for scale in scales:
        reference = table.cell(say, sampler="ddpm", guidance=scale)
        rivals = [table.cell(say, guidance=scale, **settings) for settings in RIVALS]
        cells.append((reference, rivals))
        if table.world.main:  # after every scale: the table takes a while
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(out, page(table, cells).encode())
            figures = [cell.figures() for one, others in cells for cell in (one, *others)]
            write_json(out.with_suffix(".json"), figures)
    return figures


def page(table: Table, cells: Sequence[tuple[Cell, list[Cell]]]) -> str:
    """The Markdown: fidelity of every cell, and the differences from DDPM."""
    over = table.judge.headline
    count, names = len(table.labels_NA), f"{title(over, table.judge.schema)}: {', '.join(over)}"
    headings = ["1000-step DDPM" if table.model.schedule.timesteps == 1000 else "DDPM, all steps"]
    headings += [_heading(cell) for cell in cells[0][1]]
    lines = [
        "# Fast samplers under guidance",
        "",
        f"Mean fidelity over {names}. Of {count:,} samples per cell, with its 95 % interval; the same labels "
        f"and noise in every cell. The judge itself is right on {_ceiling(table):.1%} of held-out images. "
        f"Network: {sum(p.numel() for p in table.model.network.parameters()):,} parameters, step "
        f"{table.model.step:,}, images of {table.model.size} x {table.model.size}; seed {table.seed}. "
        "Made by",
        "",
        "```\npython -m diffcore.evaluation.collapse\n```",
        "",
        "| guidance | " + " | ".join(headings) + " |",
        "|---" * (1 + len(headings)) + "|",
    ]
    for reference, rivals in cells:
        row = [
            f"{reference.sampling.guidance:g}",
            *(_interval(cell.scores.mean) for cell in (reference, *rivals)),
        ]
        lines.append("| " + " | ".join(row) + " |")
    lines += [
        "",
        "Difference from DDPM in points, sample by sample, with its 95 % interval:",
        "",
        "| guidance | " + " | ".join(headings[1:]) + " |",
        "|---" * len(headings) + "|",
    ]
    for reference, rivals in cells:
        row = [f"{reference.sampling.guidance:g}"]
        for cell in rivals:
            d = table.difference(cell, reference)
            row.append(f"{100 * d.mean:+.1f} ({100 * d.low:+.1f} to {100 * d.high:+.1f})")
        lines.append("| " + " | ".join(row) + " |")
    changes = [table.difference(rivals[0], reference).mean for reference, rivals in cells]
    verdict = "loses at most" if min(changes) >= -WITHIN else "loses MORE than"
    lines += [
        "",
        f"{headings[1]}, {verdict} {100 * WITHIN:.0f} points against DDPM: the differences go from "
        f"{100 * min(changes):+.1f} to {100 * max(changes):+.1f} points.",
        "",
    ]
    return "\n".join(lines)


def _heading(cell: Cell) -> str:
    unclamped = "" if cell.sampling.clamp else ", x_0 not clamped"
    return f"{SAMPLERS[cell.sampling.sampler].title}, {cell.steps} steps{unclamped}"


def _interval(mean: Any) -> str:
    return f"{100 * mean.mean:.1f} % ({100 * mean.low:.1f} to {100 * mean.high:.1f})"


def _ceiling(table: Table) -> float:
    accuracy = table.judge.accuracy
    return float(np.mean([accuracy[name]["share"] for name in table.judge.headline]))
