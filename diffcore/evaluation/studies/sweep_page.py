"""``sweep.html``: fidelity against diversity, a curve a sampler, and a row of pictures a scale."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffbase.files import write_atomic
from diffbase.page import svg as charts
from diffbase.page.pictures import grid
from diffcore.evaluation.quality.report import STYLE, percent, picture
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
    title = f"Guidance and steps of {run}"
    by_sampler = [(name, list(group)) for name, group in groupby(cells, lambda c: c.sampling.sampler)]
    best = f"{chosen.name} steps, guidance {chosen.sampling.guidance:g}"
    parts = [
        f"<p>{len(table.labels_NA)} samples a cell, the same labels and noise in all, {table.repeats} with "
        f"the same labels. Recommended and used by default from now on: <b>{html.escape(best)}</b>.</p>",
        "<h2>Fidelity against diversity</h2>\n<p>Every point is a guidance scale (hover to see which); "
        "diversity is the mean distance between samples of the same labels, of 255.</p>",
        chart(by_sampler),
        rows("Scales", cells),
        rows("Steps at the recommended scale", tried) if tried else "",
    ]
    for name, group in by_sampler:
        pictures = "".join(
            f"<tr><td class=n>{cell.sampling.guidance:g}</td><td>"
            f"{picture(grid(cell.images[shown], len(shown), least=48), f'{name} {cell.sampling.guidance:g}')}"
            "</td></tr>\n"
            for cell in group
        )
        parts.append(f"<h2>{html.escape(name)}</h2>\n<table>\n{pictures}</table>")
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n" + "\n".join(parts) + "\n</html>\n"
    )
    write_atomic(path, page.encode())


def rows(title: str, cells: Sequence[Cell]) -> str:
    """The cells as a table."""
    body = "".join(
        f"<tr><td>{html.escape(cell.name)}</td><td class=n>{cell.sampling.guidance:g}</td>"
        f"<td class=n>{percent(cell.scores.mean.mean)}</td>"
        f"<td class=n>{percent(cell.scores.mean.low)} to {percent(cell.scores.mean.high)}</td>"
        f"<td class=n>{cell.diversity:.1f}</td><td class=n>{cell.frechet:.2f}</td></tr>\n"
        for cell in cells
    )
    return (
        f"<h2>{title}</h2>\n<table>\n<tr><th>sampler, steps</th><th class=n>guidance</th>"
        "<th class=n>fidelity</th><th class=n>95 % interval</th><th class=n>diversity</th>"
        f"<th class=n>Frechet</th></tr>\n{body}</table>"
    )


def chart(by_sampler: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """Fidelity over diversity, a curve a sampler."""
    series = {
        name: [(c.diversity, c.scores.mean.mean, f"{c.sampling.guidance:g}") for c in group]
        for name, group in by_sampler
    }
    return charts.lines(series, "diversity", "fidelity")
