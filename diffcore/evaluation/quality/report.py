"""``quality.html``: what was measured, on one page with its pictures inside, for people."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.files import write_atomic
from diffbase.page.kit import Html, html, percent
from diffbase.page.pictures import data_uri, grid
from diffcore.config.samplers import shown_steps
from diffcore.evaluation.judging.fidelity import words
from diffcore.evaluation.quality.measure import Quality
from shards.schema import Attribute
from shards.standin.visible import visible

FILE = "quality.html"
EACH = 4  # samples shown of every variant
WORST = 16
THIN = 0.008  # of a bar: a mark
MISSED, FINE, REAL = (200, 30, 30), (255, 255, 255), (60, 60, 60)  # frames


def write(path: Path, title: str, quality: Quality, schema: Sequence[Attribute]) -> None:
    """Write the page."""
    parts = [
        *_headline(quality.figures),
        _figures(quality.figures),
        *_variants(quality, schema),
        *_misses(quality, schema),
        _repeats(quality),
        _neighbours(quality),
    ]
    write_atomic(path, html.page(title, parts).encode())


def _headline(figures: dict[str, Any]) -> list[Html]:
    sampling, fidelity = figures["sampling"], figures.get("fidelity")
    steps = shown_steps(sampling["sampler"], sampling["steps"])
    drawn = (
        f"{figures['samples']:,} samples of step {figures['step']:,}: {sampling['sampler']}, {steps} steps, "
        f"guidance {sampling['guidance']:g}, seed {figures['seed']}"
    )
    if fidelity is None:
        return [html.text(f"{drawn}. Without labels there is no fidelity.")]
    mean, over = fidelity["mean"], fidelity["over"]
    if mean is None:
        headline = html.text(html.span("big", "- "), f"{fidelity['refused']}.")
    else:
        low, high, real = map(percent, (mean["low"], mean["high"], fidelity["ceiling"]["mean"]))
        headline = html.text(
            html.span("big", f"{percent(mean['mean'])} over {fidelity['title']}"),
            f" is there as it was asked for ({low} to {high}); the judge itself is right on {real} of "
            "held-out real images, the ceiling.",
        )
    named = f" The headline's attributes: {', '.join(over)}." if over else ""
    return [
        headline,
        html.text(f"{words(fidelity)[1]}."),
        html.note(f"{drawn}.{named}"),
        _fidelity(fidelity),
    ]


def _fidelity(fidelity: dict[str, Any]) -> Html:
    rows, over = [], fidelity["over"]
    # Those in the mean first, else in the schema's order.
    for name, row in sorted(fidelity["attributes"].items(), key=lambda item: item[0] not in over):
        label = name if name in over else html.span("note", f"{name} (not in the mean)")
        share, low, high = map(percent, (row["share"], row["low"], row["high"]))
        real = percent(row["judge_on_real_images"]["share"])
        rows.append((label, share, f"{low} to {high}", row["count"], real, _bar(row)))
    return html.section(
        "Fidelity by attribute",
        html.text(
            "How often the judge reads from a sample what was asked for, with its 95 % interval (darker); "
            "black: the judge on real images; yellow: chance. Samples in which an attribute cannot be seen "
            "(hair colour of a bald head) do not count for it. Which attributes are in the mean is fixed for "
            "a data set, whatever the judge reads well."
        ),
        html.table(
            "tnnnnt", ("attribute", "as asked", "95 % interval", "samples", "judge, real images", ""), rows
        ),
    )


def _bar(row: dict[str, Any]) -> str:
    """A share with its interval, the judge's accuracy on real images (black) and chance (yellow)."""
    if math.isnan(row["share"]):
        return ""
    real = row["judge_on_real_images"]["share"]
    parts = [("share", 0, row["share"]), ("range", row["low"], row["high"] - row["low"])]
    return html.bar([*parts, ("mark", real, THIN), ("chance", row["chance"], THIN)])


def _figures(figures: dict[str, Any]) -> Html:
    rows, d = [], figures.get("distances") or {}
    for key, name in (("frechet", "Frechet"), ("kernel", "kernel")) if "frechet" in d else ():
        beside = f"{d[f'{key}_of_training_images']:.4g} for {d['training_images']:,} training images"
        rows.append((f"{name} distance to held-out images", f"{d[key]:.4g}", beside))
    if "inception" in d:
        rows.append(("Frechet distance, Inception", f"{d['inception']:.2f}", ""))
    v, n, within = figures["diversity"], figures["neighbours"], figures["diversity"]["real_one_condition"]
    alone, pair = "no two real images share all labels", f"{within:.1f} between two real images"
    rows += [
        ("distance between two samples", f"{v['all']:.1f}", f"{v['real']:.1f} between two real images"),
        (f"the same, of one condition ({v['conditions']} conditions, {v['repeats']} samples each)",
         f"{v['one_condition']:.1f}", alone if math.isnan(within) else pair),
        (f"distance to the nearest of {n['among']:,} training images, median", f"{n['median']:.1f}",
         f"{n['held_out_median']:.1f} for held-out images"),
        ("samples nearer to a training image than 95 % of the held-out images are",
         percent(n["nearer_than_5_percent_of_held_out"]), "5 % without copying"),
    ]  # fmt: skip
    if (b := figures.get("background")) is not None:
        for key, how in (("clean_to_the_eye", "to a person"), ("clean_images", "pixel by pixel")):
            name = f"samples with a clean background, {how} ({percent(b['pixels'], 0)} of the pixels)"
            rows.append((name, _interval(b[key]), f"{percent(b[f'real_{key}'])} of held-out images"))
    if (c := figures.get("checkerboard")) is not None:
        rows += [
            ("checkerboard, median (50 %: white noise)", percent(c["median"]),
             f"{percent(c['real_median'])} for held-out images"),
            ("samples with more of a checkerboard than 95 % of the held-out images have",
             _interval(c["above_95_percent_of_real"]), "5 % without one"),
        ]  # fmt: skip
    for name, row in figures.get("variety", {}).items():
        name = f"variants of {name} in use (exp of the entropy)"
        rows.append((name, f"{row['drawn']:.1f}", f"{row['real']:.1f} in held-out images"))
    return html.section(
        "Distances, diversity, copying, background, checkerboard",
        html.text(
            "Distances of images are root mean squares over thumbnails, of 255; Frechet and kernel distance "
            "are on the judge's features."
        ),
        html.table("tnt", ("", "samples", "beside it"), [(a, b, html.span("note", c)) for a, b, c in rows]),
    )


def _interval(share: dict[str, float]) -> str:
    return f"{percent(share['share'])} ({percent(share['low'])} to {percent(share['high'])})"


def _framed(image_HWC: NDArray[np.uint8], color: tuple[int, int, int]) -> NDArray[np.uint8]:
    """The image within a border of one pixel."""
    framed = np.pad(image_HWC, ((1, 1), (1, 1), (0, 0)))
    framed[[0, -1]] = color
    framed[:, [0, -1]] = color
    return framed


def _variants(quality: Quality, schema: Sequence[Attribute]) -> list[Html]:
    asked = quality.asked
    if not schema or asked.read_NA is None:
        return []
    folders = []
    over = quality.figures["fidelity"]["over"]
    for column, attribute in sorted(enumerate(schema), key=lambda item: item[1].name not in over):
        strips = []
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
            name = attribute.said(variant)
            strips.append(html.figure(data_uri(strip), f"{attribute.name} {name}", name))
        opened = attribute.name in over and attribute.variants <= 15
        folders.append(html.folded(attribute.name, html.block("figures", strips), opened))
    text = (
        "Framed grey: a held-out real image of the variant. Then samples that were asked to show it; the "
        "judge reads another variant from those framed red."
    )
    return [html.section("What every variant looks like", html.text(text), *folders)]


def _misses(quality: Quality, schema: Sequence[Attribute]) -> list[Html]:
    asked = quality.asked
    if asked.scores is None or asked.read_NA is None:
        return []
    over = np.array([a.name in quality.figures["fidelity"]["over"] for a in schema])
    wrong_NA = asked.scores.counted_NA & ~asked.scores.hit_NA & over
    worst = np.argsort(-wrong_NA.sum(1), kind="stable")[:WORST]
    cards = []
    for i in worst[wrong_NA[worst].any(1)]:
        lines = [
            f"{a.name}: {a.said(int(asked.labels_NA[i, c]))} asked, {a.said(int(asked.read_NA[i, c]))} read"
            for c, a in enumerate(schema)
            if wrong_NA[i, c]
        ]
        cards.append(html.figure(data_uri(asked.images[i]), f"sample {i}", *lines))
    text = "The samples in which the judge reads the most of the headline's attributes otherwise than asked."
    if not cards:
        return []
    return [html.section("Worst misses", html.text(text), html.block("figures cards", cards))]


def _repeats(quality: Quality) -> Html:
    rows = quality.repeats[:, :12]
    tiled = grid(rows.reshape(-1, *rows.shape[2:]), columns=rows.shape[1], least=48)
    return html.section(
        "Diversity under one condition",
        html.text("Each row has one set of labels and fresh noise for every sample."),
        html.picture(data_uri(tiled), "samples of the same labels"),
    )


def _neighbours(quality: Quality) -> Html:
    cards = []
    for i, real, distance in quality.neighbours:
        pair = data_uri(np.hstack([quality.asked.images[i], real]))
        cards.append(html.figure(pair, f"sample {i}", f"sample {i}, distance {distance:.1f}"))
    return html.section(
        "Nearest training images",
        html.text(
            "The samples that lie nearest to a training image (left the sample, right the training image). "
            "Where labels decide the whole picture, near is not copied: compare with the distance of "
            "held-out images above."
        ),
        html.block("figures cards", cards),
    )
