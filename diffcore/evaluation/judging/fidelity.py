"""Fidelity of drawn images: the headline, beside it a mean over all attributes, and each attribute's own
share.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from diffbase.page.kit import percent
from diffcore.evaluation.judging.headline import listed, title
from diffcore.evaluation.judging.intervals import Mean, corrected_mean
from diffcore.evaluation.judging.judge import Judge, Scores


def fidelity(judge: Judge, scores: Scores, real: Scores) -> dict[str, Any]:
    """Figures for JSON, of the ``scores`` of drawn images and of ``real`` held-out ones.

    ``mean`` is the headline and ``ceiling`` the same of real images, both None where ``refused`` says why;
    ``all`` is the mean over every attribute that has more than one variant, corrected for chance and for the
    judge, or None where ``all_refused`` says why.
    """
    refused = judge.refused
    corrected, why = over_all(judge, scores, real)
    return {
        "mean": None if refused else scores.mean.as_dict(),
        "ceiling": None if refused else real.mean.as_dict(),
        "refused": refused,
        "over": list(judge.headline),
        "count": len(judge.headline),
        "title": title(judge.headline, judge.schema),
        "all": corrected and {**corrected.as_dict(), "count": sum(a.variants > 1 for a in judge.schema)},
        "all_refused": why,
        "attributes": {
            a.name: {
                **scores.shares[a.name].as_dict(),
                "judge_on_real_images": real.shares[a.name].as_dict(),
                "chance": 1 / a.variants,
            }
            for a in judge.schema
        },
    }


def over_all(judge: Judge, scores: Scores, real: Scores) -> tuple[Mean | None, str | None]:
    """``corrected_mean`` over every attribute with more than one variant, or None and why there is none.

    Chance is 1 / variants: wishes are drawn uniformly, so that whatever is drawn without regard to them is
    right that often.
    """
    columns = [column for column, a in enumerate(judge.schema) if a.variants > 1]
    names = [judge.schema[column].name for column in columns]
    chance_A = np.array([1 / judge.schema[column].variants for column in columns])
    if not names:
        return None, "no mean over all attributes: none has more than one variant"
    if unseen := [name for name in names if not scores.shares[name].count or not real.shares[name].count]:
        return None, f"no mean over all attributes: of too few images, none shows {listed(unseen)}"
    lows = [real.shares[name].low for name in names]
    if blind := [name for name, low, chance in zip(names, lows, chance_A, strict=True) if low <= chance]:
        return (
            None,
            f"no mean over all attributes: the judge reads {listed(blind)} no better than chance has it",
        )
    drawn, held_out = ((s.hit_NA[:, columns], s.counted_NA[:, columns]) for s in (scores, real))
    return corrected_mean(*drawn, *held_out, chance_A), None


def words(fidelity: dict[str, Any]) -> tuple[str, str]:
    """The headline and the mean over all attributes, each as a line, or why there is none."""
    first, second = fidelity["refused"], fidelity["all_refused"]
    if (mean := fidelity["mean"]) is not None:
        first = (
            f"fidelity over {fidelity['title'].upper()}: {percent(mean['mean'])} ({percent(mean['low'])} to "
            f"{percent(mean['high'])}); the judge on real images: {percent(fidelity['ceiling']['mean'])}"
        )
    if (mean := fidelity["all"]) is not None:
        second = (
            f"over all {mean['count']}, corrected for chance and for the judge: {percent(mean['mean'])} "
            f"({percent(mean['low'])} to {percent(mean['high'])}); 0 is chance, 100 % as real images are read"
        )
    return first, second
