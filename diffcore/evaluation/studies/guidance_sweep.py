"""Which guidance scale, sampler and number of steps? Every setting's samples judged, and one recommended."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffbase.cli import InputError
from diffbase.files import write_json
from diffbase.line import say
from diffbase.page import pictures
from diffcore.config.samplers import SAMPLERS
from diffcore.engine.ranks import World
from diffcore.evaluation.judging.intervals import Mean
from diffcore.evaluation.judging.judge import open_run
from diffcore.evaluation.quality.measure import REAL
from diffcore.evaluation.studies import sweep_page
from diffcore.evaluation.studies.cells import Cell, Table
from diffcore.runs.data import held_out_samples
from diffcore.runs.sampling import RECOMMENDED

SHOWN = 10
MARGIN = 0.005
"""Settings whose mean fidelity is at most this below the best's count as good as it, chance or not."""


def sweep(
    table: Table,
    samplers: Sequence[str],
    scales: Sequence[float],
    steps: Sequence[int],
    say: Callable[[str], None],
) -> tuple[list[Cell], list[Cell], Cell]:
    """The cells of every sampler and scale, those of other numbers of steps, and the recommended one."""
    cells = [table.cell(say, sampler=sampler, guidance=scale) for sampler in samplers for scale in scales]
    best = choose(table, cells)
    if not SAMPLERS[best.sampling.sampler].takes_steps:
        return cells, [], best
    tried = [
        table.cell(say, sampler=best.sampling.sampler, guidance=best.sampling.guidance, steps=n)
        for n in steps
        if n <= table.model.config.diffusion.timesteps
    ]
    return cells, tried, fewest(table, [*tried, best])


def table_of(
    run: Path,
    judge_folder: Path | None,
    data: str | None,
    world: World,
    samples: int,
    repeats: int,
    seed: int,
    keep: Path | None = None,
) -> Table:
    """The table of a run: its network, its judge, and the judge's features of held-out images."""
    model, judge = open_run(run, judge_folder, data)
    if not model.config.model.conditional or not model.config.diffusion.label_dropout:
        raise InputError(f"{run}: guidance needs a network that learned with labels and without them")
    assert judge is not None  # conditional, so there are labels
    if judge.refused:
        raise InputError(judge.refused)
    real = held_out_samples(model.config, REAL)
    return Table(model, judge, judge.read(real.images).features_NF, world, samples, repeats, seed, keep)


def choose(table: Table, cells: Sequence[Cell]) -> Cell:
    """Among those as faithful as the best within chance, the one with the least Frechet distance."""
    best = max(cells, key=lambda cell: cell.scores.mean.mean)
    return min((cell for cell in cells if tied(table.difference(cell, best))), key=lambda cell: cell.frechet)


def fewest(table: Table, cells: Sequence[Cell]) -> Cell:
    """Among those as faithful as the best within chance, the one with the fewest steps."""
    best = max(cells, key=lambda cell: cell.scores.mean.mean)
    return min(
        (cell for cell in cells if tied(table.difference(cell, best))), key=lambda cell: cell.sampling.steps
    )


def tied(difference: Mean) -> bool:
    """Whether a setting counts as good as the best, from which it differs by this."""
    return difference.high >= 0 or difference.mean >= -MARGIN


def write(
    run: Path, table: Table, cells: Sequence[Cell], tried: Sequence[Cell], chosen: Cell
) -> dict[str, Any]:
    """sweep.json, the pictures and the recommendation, into the run folder; returns what sweep.json has."""
    settings = {
        "sampler": chosen.sampling.sampler,
        "steps": chosen.sampling.steps,
        "guidance": chosen.sampling.guidance,
    }
    record = {
        "step": table.model.step,
        "over": table.judge.headline,
        "count": len(table.judge.headline),
        "seed": table.seed,
        "recommended": settings,
        "scales": [cell.figures() for cell in cells],
        "steps": [cell.figures() for cell in tried],
    }
    write_json(run / "sweep.json", record)
    # One condition once: the first of its repeats.
    shown = np.arange(0, len(table.labels_NA), table.repeats)[:SHOWN]
    rows = [cell.images[shown] for cell in cells]
    pictures.save_png(pictures.grid(np.concatenate(rows), len(shown), least=48), run / "sweep.png")
    sweep_page.write(run / "sweep.html", run.name, table, cells, tried, chosen, shown)
    over = {"over": table.judge.headline, "count": len(table.judge.headline)}
    evidence = {**settings, "step": table.model.step, "fidelity": chosen.scores.mean.as_dict(), **over}
    write_json(run / RECOMMENDED, evidence)
    say(f"recommended: {settings}, written to {run / RECOMMENDED}; pictures: {run / 'sweep.html'}")
    return record
