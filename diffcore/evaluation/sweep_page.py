"""``sweep.html``: fidelity against diversity, a curve a sampler, and a row of pictures a scale."""

from __future__ import annotations

import html
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diffcore.evaluation.cells import Cell, Table
from diffcore.evaluation.report import STYLE, percent, picture
from diffcore.pictures import grid
from shards.files import write_atomic

COLORS = ("#4a78b5", "#c0562f", "#3d8b4f", "#8557a5")
WIDTH, HEIGHT, LEFT, BOTTOM = 640, 360, 60, 40


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
        f"<h2>{title}</h2>\n<table>\n<tr><th>sampler, steps</th><th>guidance</th><th>fidelity</th>"
        f"<th>95 % interval</th><th>diversity</th><th>Frechet</th></tr>\n{body}</table>"
    )


def chart(by_sampler: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """An SVG with a curve a sampler."""
    cells = [cell for _, group in by_sampler for cell in group]
    most = max(1e-9, *(cell.diversity for cell in cells)) * 1.05

    def place(cell: Cell) -> tuple[float, float]:
        x = LEFT + cell.diversity / most * (WIDTH - LEFT - 10)
        return x, 10 + (1 - cell.scores.mean.mean) * (HEIGHT - BOTTOM - 10)

    lines = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = 10 + (1 - share) * (HEIGHT - BOTTOM - 10)
        lines.append(
            f'<line x1="{LEFT}" x2="{WIDTH - 10}" y1="{y:.0f}" y2="{y:.0f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{y + 4:.0f}" text-anchor="end">{share:.0%}</text>'
        )
    for i, (name, group) in enumerate(by_sampler):
        color = COLORS[i % len(COLORS)]
        points = [place(cell) for cell in group]
        lines.append(
            f'<polyline fill="none" stroke="{color}" points="'
            + " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            + '"/>'
        )
        for (x, y), cell in zip(points, group, strict=True):
            lines.append(
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"><title>{html.escape(name)} '
                f"{cell.sampling.guidance:g}</title></circle>"
            )
        lines.append(
            f'<text x="{WIDTH - 15}" y="{HEIGHT - BOTTOM - 15 - 18 * i}" text-anchor="end" fill="{color}">'
            f"{html.escape(name)}</text>"
        )
    lines.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 8}" text-anchor="middle">diversity</text>')
    return f'<svg width="{WIDTH}" height="{HEIGHT}" font-size="12">{"".join(lines)}</svg>'
