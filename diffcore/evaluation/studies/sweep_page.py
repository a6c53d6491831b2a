"""``sweep.html``: fidelity against diversity, a curve per sampler, and a row of pictures per scale."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbase.files import write_atomic
from diffbase.page import svg as charts
from diffbase.page.kit import Html, html, percent
from diffbase.page.pictures import data_uri, grid
from diffcore.evaluation.judging.headline import title
from diffcore.evaluation.studies.cells import Cell, Table


def write(
    path: Path,
    run: str,
    table: Table,
    cells: Sequence[Cell],
    tried: Sequence[Cell],
    chosen: Cell,
    shown: NDArray[np.int64],
) -> None:
    """Write the page; ``shown`` are the samples whose pictures it holds."""
    best = f"{chosen.name} steps, guidance {chosen.sampling.guidance:g}"
    fidelity = html.span("strong", f"Fidelity is over {title(table.judge.headline, table.judge.schema)}. ")
    first = (
        f"{len(table.labels_NA)} samples per cell, the same labels and noise in all, {table.repeats} with "
        "the same labels. Recommended and used by default from now on: "
    )
    second = (
        "Every point is a guidance scale (hover to see which); diversity is the mean distance between "
        "samples of the same labels, of 255."
    )
    parts = [
        html.text(fidelity, first, html.span("strong", best), "."),
        html.section("Fidelity against diversity", html.text(second), _chart(cells)),
        _rows("Scales", cells),
    ]
    if tried:
        parts.append(_rows("Steps at the recommended scale", tried))
    for name, group in groupby(cells, _sampler):
        pictures = []
        for cell in group:
            scale, tiled = f"{cell.sampling.guidance:g}", grid(cell.images[shown], len(shown), least=48)
            pictures.append((scale, html.picture(data_uri(tiled), f"{name} {scale}")))
        parts.append(html.section(name, html.table("nt", (), pictures)))
    write_atomic(path, html.page(f"Guidance and steps of {run}", parts).encode())


def _sampler(cell: Cell) -> str:
    return cell.sampling.sampler


def _rows(title: str, cells: Sequence[Cell]) -> Html:
    headings = ("sampler, steps", "guidance", "fidelity", "95 % interval", "diversity", "Frechet")
    rows = []
    for cell in cells:
        mean, low, high = map(percent, (cell.scores.mean.mean, cell.scores.mean.low, cell.scores.mean.high))
        scale, diversity, frechet = cell.sampling.guidance, cell.diversity, cell.frechet
        rows.append((cell.name, f"{scale:g}", mean, f"{low} to {high}", f"{diversity:.1f}", f"{frechet:.2f}"))
    return html.section(title, html.table("tnnnnn", headings, rows))


def _chart(cells: Sequence[Cell]) -> Html:
    """Fidelity over diversity, a curve per sampler."""
    series = {
        name: [(c.diversity, c.scores.mean.mean, f"{c.sampling.guidance:g}") for c in group]
        for name, group in groupby(cells, _sampler)
    }
    return charts.lines(series, "diversity", "fidelity")
