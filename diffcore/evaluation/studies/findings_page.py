"""What the findings' figures say: a verdict and a section each, and the page. ``findings.py`` makes the runs.

``of`` picks a checkpoint of a run's curve (``first``, ``final``) and ``what`` a figure of it (``fidelity``,
``colors``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from diffbase.page import svg as charts
from diffcore.config.tree import Config
from diffcore.evaluation.studies.estimate import Estimate

COLORS = ("hair_color", "face_color")
LOOKS = (8, 12, 16)
"""Seeds after which the figures are looked at; what is decided then stays so and gets no further runs."""
LEVEL = 1 - 0.05 / len(LOOKS)
"""Of every interval: all looks together miss the truth in 5 % at most (Bonferroni)."""
MARGIN = 0.05
"""A gain below this is none worth having: a claim of one does not hold where the interval ends below it."""
UNDECIDED = "undecided"

Measured = Mapping[tuple[str, int], dict[str, Any]]
"""What ``points`` wrote, by experiment and seed."""
Runs = Mapping[str, Sequence[dict[str, Any]]]
"""The same by experiment: as many seeds of each, in the same order."""


@dataclass(frozen=True)
class Point:
    """One run of the plan."""

    name: str
    seed: int
    config: Config
    run: Path


def final(row: dict[str, Any], weights: str = "ema") -> dict[str, Any]:
    """The last checkpoint of a run's curve."""
    result: dict[str, Any] = [point for point in row["points"] if point["weights"] == weights][-1]
    return result


def first(row: dict[str, Any]) -> dict[str, Any]:
    """The first checkpoint of a run's curve."""
    result: dict[str, Any] = row["points"][0]
    return result


def fidelity(point: dict[str, Any]) -> float:
    """The mean fidelity of a checkpoint."""
    return float(point["fidelity"])


def colors(point: dict[str, Any]) -> float:
    """The mean share of right colours at a checkpoint."""
    return float(np.mean([point["attributes"][name]["share"] for name in COLORS]))


def gain(
    runs: Runs,
    name: str,
    than: str,
    of: Callable[[dict[str, Any]], dict[str, Any]],
    what: Callable[..., float],
) -> Estimate:
    """How much more ``name`` has than ``than``, seed by seed."""
    pairs = zip(runs[name], runs[than], strict=True)
    return Estimate.of([what(of(a)) - what(of(b)) for a, b in pairs], LEVEL)


def more(estimate: Estimate) -> str:
    """The verdict on "more than nothing"."""
    if estimate.low > 0:
        return "holds"
    if estimate.high < 0:
        return "the opposite holds"
    return "does not hold" if estimate.high < MARGIN else UNDECIDED


def looks(seeds: int) -> tuple[int, ...]:
    """After how many seeds the figures are looked at, where there may be ``seeds``."""
    return tuple(look for look in LOOKS if look <= seeds) or (seeds,)


def shares(runs: Runs, name: str, of: Callable[..., dict[str, Any]], what: Callable[..., float]) -> str:
    """Mean over the seeds, and every seed."""
    values = [what(of(row)) for row in runs[name]]
    return f"{100 * np.mean(values):.1f} % ({', '.join(f'{100 * v:.1f}' for v in values)})"


def table(rows: Sequence[tuple[str, ...]], *headings: str) -> str:
    """A table in Markdown."""
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def finding_1(runs: Runs) -> tuple[str, str]:
    """Verdict and section on pixels in [-1, 1] against [0, 1]."""
    early, late = (gain(runs, "one-hot", "unit-pixels", at, fidelity) for at in (first, final))
    images = first(runs["one-hot"][0])["images"]
    rows = [
        (label, shares(runs, name, first, fidelity), shares(runs, name, final, fidelity))
        for label, name in (("[-1, 1]", "one-hot"), ("[0, 1]", "unit-pixels"))
    ]
    text = table(rows, "pixels", f"mean fidelity after {images:,} images", "at the end")
    return more(early), f"{text}\n\n[-1, 1] is ahead by {early.points()} then, {late.points()} at the end."


def finding_2(runs: Runs) -> tuple[str, str]:
    """Verdict and section on the variety of samples without labels."""
    variety, asked = (
        Estimate.of([final(row)["variety"] for row in runs[name]], LEVEL)
        for name in ("unconditional", "one-hot")
    )
    spread = np.mean([final(row)["spread"] for row in runs["unconditional"]])
    with_labels = np.mean([final(row)["spread"] for row in runs["one-hot"]])
    verdict = "holds" if variety.high < 0.5 else "does not hold" if variety.low > 0.5 else UNDECIDED
    return verdict, (
        f"Variants in use (exp of the entropy of what the judge reads, mean over the attributes that it "
        f"reads well), as a share of the real images': {variety.range()} without labels, "
        f"{asked.mean:.2f} with labels asked for. Two samples differ by "
        f"{spread:.1f} of 255 without labels, {with_labels:.1f} with. A collapse onto a few looks would be a "
        "share well under a half, which is what the verdict asks for."
    )


def finding_3(runs: Runs) -> tuple[str, str]:
    """Verdict and section on one-hot attributes against integers."""
    early, late = (gain(runs, "one-hot", "integers", at, fidelity) for at in (first, final))
    images = first(runs["one-hot"][0])["images"]
    rows = [
        (name, shares(runs, name, first, fidelity), shares(runs, name, final, fidelity))
        for name in ("one-hot", "integers")
    ]
    text = table(rows, "attributes", f"mean fidelity after {images:,} images", "at the end")
    return more(early), f"{text}\n\nOne-hot is ahead by {early.points()} then, {late.points()} at the end."


def finding_4(runs: Runs) -> tuple[str, str]:
    """Verdict and section on twice Tau's projections."""
    change = gain(runs, "one-head-double-tau", "one-head", final, colors)
    verdict = "holds" if change.high < MARGIN else "does not hold" if change.low > MARGIN else UNDECIDED
    return verdict, (
        f"Hair and face colour with one head: {shares(runs, 'one-head', final, colors)}; with twice Tau's "
        f"projections {shares(runs, 'one-head-double-tau', final, colors)}: {change.points()}. "
        "The verdict asks for a gain of less than 5 points."
    )


def finding_5(runs: Runs) -> tuple[str, str]:
    """Verdict and section on four heads against one."""

    def hair(point: dict[str, Any]) -> float:
        return float(point["attributes"]["hair_color"]["share"])

    end, early = (gain(runs, "one-hot", "one-head", at, hair) for at in (final, first))
    return more(end), (
        f"Hair colour with one head: {shares(runs, 'one-head', final, hair)}; with four "
        f"{shares(runs, 'one-hot', final, hair)}: {end.points()} at the end, {early.points()} at the first "
        "checkpoint."
    )


def finding_6(runs: Runs) -> tuple[str, str]:
    """Verdict and section on four heads and twice Tau's projections together."""
    rows = [
        (f"{heads}, Tau x {tau}", shares(runs, name, final, fidelity), shares(runs, name, final, colors))
        for name, heads, tau in (
            ("one-head", "1 head", 1), ("one-head-double-tau", "1 head", 2), ("one-hot", "4 heads", 1),
            ("double-tau", "4 heads", 2),
        )
    ]  # fmt: skip
    change = gain(runs, "double-tau", "one-head", final, fidelity)
    text = table(rows, "network", "mean fidelity at the end", "hair and face colour")
    return more(change), f"{text}\n\nBoth together, against neither: {change.points()} of mean fidelity."


def falls(row: dict[str, Any], weights: str) -> list[tuple[dict[str, Any], dict[str, Any], str]]:
    """Pairs of neighbouring checkpoints whose loss fell while a colour got significantly worse."""
    points = [point for point in row["points"] if point["weights"] == weights]
    # Many pairs are looked at: chance is to find one in 2.5 % of the runs, not of the pairs (Bonferroni).
    z = NormalDist().inv_cdf(1 - 0.025 / max(1, len(COLORS) * (len(points) - 1)))
    found = []
    for before, after in pairwise(points):
        if before["loss"] is None or after["loss"] is None or after["loss"] >= before["loss"]:
            continue
        for name in COLORS:
            a, b = before["attributes"][name], after["attributes"][name]
            error = math.sqrt(sum(s["share"] * (1 - s["share"]) / s["count"] for s in (a, b)))
            if a["share"] - b["share"] > z * max(error, 1e-9):
                found.append((before, after, name))
    return found


def finding_7(runs: Runs) -> tuple[str, str]:
    """Verdict and section on colours lost while the loss falls."""
    rows, seeds = [], 0
    for seed, row in enumerate(runs["constant-rate"]):
        for before, after, name in (found := falls(row, "raw")):
            rows.append(
                (str(seed), name, f"{before['step']} to {after['step']}",
                 f"{before['loss']:.4f} to {after['loss']:.4f}",
                 f"{100 * before['attributes'][name]['share']:.1f} % to "
                 f"{100 * after['attributes'][name]['share']:.1f} %")
            )  # fmt: skip
        seeds += bool(found)
    ema = sum(len(falls(row, "ema")) for row in runs["constant-rate"])
    raws = [[p for p in row["points"] if p["weights"] == "raw"] for row in runs["constant-rate"]]
    best = [
        (max(raw, key=lambda p: p["fidelity"])["step"], min(raw, key=lambda p: p["loss"])["step"])
        for raw in raws
    ]
    overfit = [
        (min(raw, key=lambda p: p["validation_loss"]), raw[-1])
        for raw in raws
        if all(p.get("validation_loss") is not None for p in raw)
    ]
    count = len(runs["constant-rate"])
    verdict = "holds" if seeds == count else "holds for some seeds" if seeds else "does not hold"
    text = table(rows, "seed", "colour", "steps", "loss", "as asked") if rows else "No such fall was seen."
    return verdict, (
        "Falls of a colour between neighbouring checkpoints, beyond chance (95 %, over all pairs of a seed), "
        f"while the mean loss fell, with the raw weights at a constant rate:\n\n{text}\n\nThe EMA weights "
        f"have {ema} such falls. Most faithful checkpoint and that of the least loss: "
        + ", ".join(f"step {a} and {b}" for a, b in best)
        + "."
        + "".join(
            f" Seed {seed}: the loss on held-out images was least at step {least['step']} "
            f"({least['validation_loss']:.4f}) and {end['validation_loss']:.4f} in the end."
            for seed, (least, end) in enumerate(overfit)
        )
    )


def finding_8(runs: Runs) -> tuple[str, str]:
    """Verdict and section on noise schedules by the size of images."""
    # Colours, not the mean fidelity: on small images the judge reads fewer attributes.
    small = gain(runs, "small-half-scale", "small", final, colors)
    large = gain(runs, "half-scale", "one-hot", final, colors)
    names = ("small", "small-half-scale", "one-hot", "half-scale")
    quads = zip(*(runs[name] for name in names), strict=True)
    between = Estimate.of(
        [colors(final(d)) - colors(final(c)) - colors(final(b)) + colors(final(a)) for a, b, c, d in quads],
        LEVEL,
    )
    rows = [
        (size, shares(runs, plain, final, colors), shares(runs, half, final, colors))
        for size, plain, half in (("small", *names[:2]), ("large", *names[2:]))
    ]
    text = table(rows, "images", "hair and face colour, b = 1", "b = 0.5")
    return more(between), (
        f"{text}\n\nScaling the input by b = 0.5 lowers logSNR by 2 log 2 at every level (exactly, see "
        "`tests/unit/diffcore/diffusion/test_diffusion.py`; Chen writes log b, of the amplitude). It moves "
        f"small images by {small.points()} and large ones by {large.points()}; the difference between the "
        f"two is {between.points()}."
    )


FINDINGS: dict[int, tuple[str, Callable[[Runs], tuple[str, str]], tuple[str, ...]]] = {
    1: ("Pixels in [0, 1] learn far slower than in [-1, 1]", finding_1, ("one-hot", "unit-pixels")),
    2: ("Unconditional training collapses onto a few looks", finding_2, ("one-hot", "unconditional")),
    3: ("One-hot attributes learn faster than integers", finding_3, ("one-hot", "integers")),
    4: ("Doubling Tau's projections alone does not fix colours", finding_4,
        ("one-head", "one-head-double-tau")),
    5: ("Four heads instead of one bring hair colours", finding_5, ("one-hot", "one-head")),
    6: ("Four heads and doubled Tau together give the final model", finding_6,
        ("one-hot", "one-head", "one-head-double-tau", "double-tau")),
    7: ("A lower loss does not mean better images", finding_7, ("constant-rate",)),
    8: ("The best noise schedule depends on the image's size", finding_8,
        ("one-hot", "half-scale", "small", "small-half-scale")),
}  # fmt: skip


@dataclass(frozen=True)
class Verdict:
    """On one finding: open where not even the first look has its runs."""

    said: str
    text: str
    seeds: int
    """Of the look that it was decided at, or else of the last one."""

    @property
    def decided(self) -> bool:
        """Whether no further run would change it."""
        return self.said not in (UNDECIDED, "open")


def verdict(number: int, measured: Measured, seeds: int) -> Verdict:
    """The verdict of the first look that decides, or of the last that has its runs."""
    _, judge, needs = FINDINGS[number]
    result = Verdict("open", f"Not run: {', '.join(needs)}, all with {looks(seeds)[0]} seeds.", 0)
    for look in looks(seeds):
        if any((name, seed) not in measured for name in needs for seed in range(look)):
            break
        runs = {name: [measured[name, seed] for seed in range(look)] for name in needs}
        result = Verdict(*judge(runs), look)
        if result.decided:
            break
    return result


def needed(measured: Measured, seeds: int) -> set[str]:
    """The experiments of the findings that are not decided."""
    left = [number for number in FINDINGS if not verdict(number, measured, seeds).decided]
    return {name for number in left for name in FINDINGS[number][2]}


def picture(measured: Measured) -> str:
    """Mean fidelity of every experiment over the images seen, mean over the seeds."""
    series = {}
    for name in dict.fromkeys(name for name, _ in measured):
        rows = [row for (of, _), row in measured.items() if of == name]
        curves = [[p for p in row["points"] if p["weights"] == "ema" and "fidelity" in p] for row in rows]
        means = [
            (float(at[0]["images"]), float(np.mean([p["fidelity"] for p in at])), f"step {at[0]['step']}")
            for at in zip(*curves, strict=True)
        ]
        if means:
            series[name] = means
    return charts.lines(series, "images seen", "mean fidelity, EMA weights", width=860, height=420)


def page(
    measured: Measured, points: Sequence[Point], sizes: tuple[int, int], command: str, drawing: str
) -> str:
    """The Markdown.

    ``points`` are the planned runs, ``sizes`` those of the images, ``command`` makes the page and ``drawing``
    is the name of its picture.
    """
    config, seeds = points[0].config, len({p.seed for p in points})
    samples = next((row["samples"] for row in measured.values()), 0)
    parts, summary = [], []
    for number, (claim, _, _) in FINDINGS.items():
        found = verdict(number, measured, seeds)
        summary.append((str(number), claim, f"**{found.said}**", str(found.seeds or "")))
        parts.append(f"## {number}. {claim}: {found.said}\n\n{found.text}\n")
    at = " and ".join(", ".join(map(str, looks(seeds))).rsplit(", ", 1))
    head = (
        f"# Earlier findings, repeated\n\nEight findings of earlier systems, each as an experiment: stand-in "
        f"avatars of {sizes[1]} x {sizes[1]} pixels (and {sizes[0]} for finding 8), "
        f"{config.train.steps:,} steps of {config.batch.size}, {samples} samples a checkpoint (EMA weights, "
        f"{config.sampling.sampler}, {config.sampling.steps} steps, guidance {config.sampling.guidance:g}), "
        "judged by a classifier trained on real images. The same seed is the same data order and noise on "
        f"both sides, and what is compared is the difference seed by seed. Looked at after {at} seeds, by a "
        f"rule that was fixed before: intervals are {LEVEL:.1%} (Student's t), so that all looks together "
        "miss the truth in 5 % at most; a claim that something is better holds where the interval lies above "
        f"zero, does not hold where it ends below {MARGIN * 100:g} points, and what is decided gets no "
        "further runs. A verdict is about this scale: small networks, minutes of training. Made by\n\n"
        f"```\n{command}\n```\n"
    )
    image = f"\n![Mean fidelity of every experiment over the images seen]({drawing})\n"
    return "\n".join([head, table(summary, "", "finding", "here", "seeds"), image, *parts])
