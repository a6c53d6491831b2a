"""``quality.html``: what was measured, on one page with its pictures inside, for people.

Needs nothing from outside and runs no script. Every name that comes from the data is escaped.
"""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffbase.files import write_atomic
from diffbase.page.pictures import grid
from diffcore.config.samplers import shown_steps
from diffcore.evaluation.quality.measure import Quality
from shards.schema import Attribute
from shards.standin.visible import visible

FILE = "quality.html"
EACH = 4  # samples shown of every variant
WORST = 16
MISSED, FINE, REAL = (200, 30, 30), (255, 255, 255), (60, 60, 60)  # frames

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem }
img { image-rendering: pixelated; max-width: 100% }
h2 { margin-top: 2.2rem; border-bottom: 1px solid #ddd } table { border-collapse: collapse }
th { text-align: left; font-weight: 600 } td, th { padding: .15rem .7rem .15rem 0; vertical-align: top }
.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
.bar { position: relative; width: 16rem; height: 1rem; background: #eee }
.bar div { position: absolute; top: 0; height: 1rem }
.share { background: #4a78b5 } .range { background: #16355c66 }
.mark { background: #222; width: 2px } .chance { background: #d58a00; width: 2px }
.cards { display: flex; flex-wrap: wrap; gap: .8rem } .card { width: 11rem; font-size: .8rem }
.card img { width: 96px } .big { font-size: 2rem; font-weight: 600 } summary { cursor: pointer }
.quiet { color: #666 } .groups { display: flex; flex-wrap: wrap; gap: .4rem } .groups figure { margin: 0 }
figcaption { font-size: .75rem; line-height: 1.2 }
"""


def write(
    path: Path, title: str, quality: Quality, schema: Sequence[Attribute], names: dict[str, Any]
) -> None:
    """Write the page. ``names`` are the variants' names where the data has any."""
    parts = [
        _headline(quality.figures),
        _fidelity(quality.figures),
        _figures(quality.figures),
        _variants(quality, schema, names),
        _misses(quality, schema, names),
        _repeats(quality),
        _neighbours(quality),
    ]
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{html.escape(title)}</h1>\n"
        + "\n".join(part for part in parts if part)
        + "\n</html>\n"
    )
    write_atomic(path, page.encode())


def picture(image_HWC: NDArray[np.uint8], alt: str) -> str:
    """An image of the page, within it."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, "PNG", optimize=True)
    data = base64.b64encode(stream.getvalue()).decode()
    return f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{data}">'


def percent(share: float, digits: int = 1) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f} %"


def bar(row: dict[str, float], ceiling: float, chance: float | None = None) -> str:
    """A share with its interval, the judge's accuracy on real images (black) and chance (yellow)."""
    if math.isnan(row["share"]):
        return ""
    marks = [
        ("share", 0.0, row["share"]), ("range", row["low"], row["high"]), ("mark", ceiling, None),
    ]  # fmt: skip
    if chance is not None:
        marks.append(("chance", chance, None))
    return '<div class="bar">' + "".join(
        f'<div class="{kind}" style="left:{100 * low:.1f}%'
        + (f";width:{100 * (high - low):.1f}%" if high is not None else "")
        + '"></div>'
        for kind, low, high in marks
    ) + "</div>"  # fmt: skip


def _headline(figures: dict[str, Any]) -> str:
    sampling = figures["sampling"]
    steps = shown_steps(sampling["sampler"], sampling["steps"])
    drawn = (
        f"{figures['samples']:,} samples of step {figures['step']:,}: {sampling['sampler']}, {steps} steps, "
        f"guidance {sampling['guidance']:g}, seed {figures['seed']}"
    )
    if "fidelity" not in figures:
        return f"<p>{html.escape(drawn)}. Without labels there is no fidelity.</p>"
    mean, ceiling = figures["fidelity"]["mean"], figures["fidelity"]["ceiling"]
    return (
        f'<p><span class="big">{percent(mean["mean"])}</span> of what was asked for is there '
        f"({percent(mean['low'])} to {percent(mean['high'])}); the judge itself is right on "
        f"{percent(ceiling['mean'])} of held-out real images, the ceiling.</p>\n"
        f'<p class="quiet">{html.escape(drawn)}. Mean over {len(figures["fidelity"]["over"])} attributes: '
        f"{html.escape(', '.join(figures['fidelity']['over']))}.</p>"
    )


def _fidelity(figures: dict[str, Any]) -> str:
    if "fidelity" not in figures:
        return ""
    lines, over = [], figures["fidelity"]["over"]
    # Those in the mean first, else in the schema's order.
    attributes = sorted(figures["fidelity"]["attributes"].items(), key=lambda item: item[0] not in over)
    for name, row in attributes:
        real = row["judge_on_real_images"]
        label = html.escape(name)
        if name not in over:
            label = f'<span class="quiet">{label} (not in the mean)</span>'
        lines.append(
            f'<tr><td>{label}</td><td class="n">{percent(row["share"])}</td>'
            f'<td class="n">{percent(row["low"])} to {percent(row["high"])}</td>'
            f'<td class="n">{row["count"]}</td><td class="n">{percent(real["share"])}</td>'
            f"<td>{bar(row, real['share'], row['chance'])}</td></tr>\n"
        )
    return (
        "<h2>Fidelity by attribute</h2>\n<p>How often the judge reads from a sample what was asked for, with "
        "its 95 % interval (darker); black: the judge on real images; yellow: chance. Samples in which an "
        "attribute cannot be seen (hair colour of a bald head) do not count for it. Attributes that the "
        "judge reads badly even from real images are not in the mean.</p>\n<table>\n<tr><th>attribute</th>"
        "<th class=n>as asked</th><th class=n>95 % interval</th><th class=n>samples</th>"
        "<th class=n>judge, real images</th><th></th></tr>\n"
        f"{''.join(lines)}</table>"
    )


def _figures(figures: dict[str, Any]) -> str:
    rows: list[tuple[str, str, str]] = []
    if (d := figures.get("distances")) is not None and "frechet" in d:
        few = f"{d['training_images']:,} training images"
        rows += [
            ("Frechet distance to held-out images", f"{d['frechet']:.4g}",
             f"{d['frechet_of_training_images']:.4g} for {few}"),
            ("kernel distance to held-out images", f"{d['kernel']:.4g}",
             f"{d['kernel_of_training_images']:.4g} for {few}"),
        ]  # fmt: skip
    if d is not None and "inception" in d:
        rows.append(("Frechet distance, Inception", f"{d['inception']:.2f}", ""))
    v = figures["diversity"]
    within = v["real_one_condition"]
    beside = "no two real images share all labels"
    if not math.isnan(within):
        beside = f"{within:.1f} between two real images"
    rows += [
        ("distance between two samples", f"{v['all']:.1f}", f"{v['real']:.1f} between two real images"),
        (
            f"the same, of one condition ({v['conditions']} conditions, {v['repeats']} samples each)",
            f"{v['one_condition']:.1f}",
            beside,
        ),
    ]
    n = figures["neighbours"]
    rows += [
        (f"distance to the nearest of {n['among']:,} training images, median", f"{n['median']:.1f}",
         f"{n['held_out_median']:.1f} for held-out images"),
        ("samples nearer to a training image than 95 % of the held-out images are",
         percent(n["nearer_than_5_percent_of_held_out"]), "5 % without copying"),
    ]  # fmt: skip
    if (b := figures.get("background")) is not None:
        clean = b["clean_images"]
        rows.append(
            (f"samples with a clean background ({percent(b['pixels'], 0)} of the pixels)",
             f"{percent(clean['share'])} ({percent(clean['low'])} to {percent(clean['high'])})",
             f"{percent(b['real_clean_images'])} of held-out images"),
        )  # fmt: skip
    for name, row in figures.get("variety", {}).items():
        rows.append(
            (f"variants of {name} in use (exp of the entropy)", f"{row['drawn']:.1f}",
             f"{row['real']:.1f} in held-out images")
        )  # fmt: skip
    body = "".join(
        f'<tr><td>{html.escape(a)}</td><td class="n">{html.escape(b)}</td>'
        f'<td class="quiet">{html.escape(c)}</td></tr>\n'
        for a, b, c in rows
    )
    return (
        "<h2>Distances, diversity, copying, background</h2>\n<p>Distances of images are root mean squares "
        "over thumbnails, of 255; Frechet and kernel distance are on the judge's features.</p>\n"
        f"<table>\n<tr><th></th><th class=n>samples</th><th>beside it</th></tr>\n{body}</table>"
    )


def _named(attribute: Attribute, variant: int, names: dict[str, Any]) -> str:
    known = names.get(attribute.name)
    return f"{variant} ({known[variant]})" if known else str(variant)


def _framed(image_HWC: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image within a border of one pixel."""
    framed = np.pad(image_HWC, ((1, 1), (1, 1), (0, 0)))
    framed[[0, -1]] = color
    framed[:, [0, -1]] = color
    return framed


def _variants(quality: Quality, schema: Sequence[Attribute], names: dict[str, Any]) -> str:
    asked = quality.asked
    if not schema or asked.read_NA is None:
        return ""
    sections = []
    over = quality.figures["fidelity"]["over"]
    for column, attribute in sorted(enumerate(schema), key=lambda item: item[1].name not in over):
        figures = []
        for variant in range(attribute.variants):
            real = np.flatnonzero(quality.real.labels[:, column] == variant)[:1]
            drawn = np.flatnonzero(asked.labels_NA[:, column] == variant)[:EACH]
            missed = asked.read_NA[drawn, column] != variant
            missed &= visible(schema, asked.labels_NA[drawn])[:, column]
            tiles = [_framed(quality.real.images[i], REAL) for i in real]
            tiles = tiles or [np.full_like(_framed(asked.images[0], FINE), 235)]  # none is held out
            tiles += [
                _framed(asked.images[i], MISSED if m else FINE) for i, m in zip(drawn, missed, strict=True)
            ]
            strip = grid(np.stack(tiles), columns=1 + EACH, gap=1, least=48)
            name = _named(attribute, variant, names)
            figures.append(
                f"<figure>{picture(strip, f'{attribute.name} {name}')}"
                f"<figcaption>{html.escape(name)}</figcaption></figure>"
            )
        opened = " open" if attribute.name in over and attribute.variants <= 15 else ""
        sections.append(
            f"<details{opened}><summary>{html.escape(attribute.name)}</summary>\n"
            f'<div class="groups">{"".join(figures)}</div></details>\n'
        )
    return (
        "<h2>What every variant looks like</h2>\n<p>Framed grey: a held-out real image of the variant. Then "
        f"samples that were asked to show it; the judge reads another variant from those framed red.</p>\n"
        f"{''.join(sections)}"
    )


def _misses(quality: Quality, schema: Sequence[Attribute], names: dict[str, Any]) -> str:
    asked = quality.asked
    if asked.scores is None or asked.read_NA is None:
        return ""
    # Only what the judge reads well: its own mistakes are no misses.
    over = np.array([a.name in quality.figures["fidelity"]["over"] for a in schema])
    wrong_NA = asked.scores.counted_NA & ~asked.scores.hit_NA & over
    worst = np.argsort(-wrong_NA.sum(1), kind="stable")[:WORST]
    cards = []
    for i in worst[wrong_NA[worst].any(1)]:
        lines = "".join(
            f"<div>{html.escape(a.name)}: {html.escape(_named(a, int(asked.labels_NA[i, c]), names))} asked, "
            f"{html.escape(_named(a, int(asked.read_NA[i, c]), names))} read</div>"
            for c, a in enumerate(schema)
            if wrong_NA[i, c]
        )
        cards.append(f'<div class="card">{picture(asked.images[i], f"sample {i}")}{lines}</div>')
    if not cards:
        return ""
    return (
        "<h2>Worst misses</h2>\n<p>The samples in which the judge reads the most attributes otherwise than "
        f'asked, of those that it reads well.</p>\n<div class="cards">{"".join(cards)}</div>'
    )


def _repeats(quality: Quality) -> str:
    rows = quality.repeats[:, :12]
    tiled = grid(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], least=48)
    return (
        "<h2>Diversity under one condition</h2>\n<p>Each row has one set of labels and fresh noise for every "
        f"sample.</p>\n{picture(tiled, 'samples of the same labels')}"
    )


def _neighbours(quality: Quality) -> str:
    cards = "".join(
        f'<div class="card">{picture(np.hstack([quality.asked.images[i], real]), f"sample {i}")}'
        f"<div>sample {i}, distance {distance:.1f}</div></div>"
        for i, real, distance in quality.neighbours
    )
    return (
        "<h2>Nearest training images</h2>\n<p>The samples that lie nearest to a training image (left the "
        "sample, right the training image). Where labels decide the whole picture, near is not copied: "
        f'compare with the distance of held-out images above.</p>\n<div class="cards pairs">{cards}</div>'
    )
