"""The headline cannot flatter: a fixed set, none by a weak judge, and a corrected mean beside it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffcore.evaluation.judging import headline, judge
from diffcore.evaluation.judging.fidelity import fidelity, words
from diffcore.evaluation.judging.intervals import corrected_mean
from diffcore.evaluation.quality import record
from shards.schema import CARTOON_SET, Attribute

SCHEMA = (Attribute("shape", 3), Attribute("hue", 4), Attribute("only", 1), Attribute("size", 2))
MEMBERS = ("shape", "hue", "size")


def judge_of(schema: tuple[Attribute, ...], accuracy: dict[str, float | None], **more: Any) -> judge.Judge:
    """A judge with this accuracy on held-out images; it is not asked to read."""
    rows = {name: {"share": share} for name, share in accuracy.items()}
    readable = [name for name, share in accuracy.items() if (share or 0) >= headline.READABLE]
    net = judge.JudgeNet(schema, 8, 2, 2)
    return judge.Judge(net, schema, {"readable": readable, "accuracy": rows, **more})


def scores_of(one: judge.Judge, read: Any, labels: Any) -> judge.Scores:
    reading = judge.Reading(np.asarray(read), np.empty((len(read), 2), np.float32))
    return one.score(np.empty((len(read), 8, 8, 3), np.uint8), np.asarray(labels), reading)


# --- the set ------------------------------------------------------------------------------------------------


def test_cartoon_sets_headline_is_its_twelve_and_of_other_data_all_that_varies() -> None:
    assert len(headline.fixed(CARTOON_SET)) == 12
    assert set(headline.fixed(CARTOON_SET)) < {a.name for a in CARTOON_SET}
    named = tuple(Attribute(a.name, a.variants, tuple(map(str, range(a.variants)))) for a in CARTOON_SET)
    assert headline.fixed(named) == headline.fixed(CARTOON_SET)  # names are for people
    assert headline.fixed(CARTOON_SET[1:]) == tuple(a.name for a in CARTOON_SET[1:])
    assert headline.fixed(SCHEMA) == MEMBERS


@given(st.sets(st.sampled_from(MEMBERS), min_size=1))
def test_a_set_of_its_own_stands_in_the_schemas_order_and_is_said_to_be_one(names: set[str]) -> None:
    found = headline.chosen(SCHEMA, ",".join(sorted(names, reverse=True)))
    assert found == tuple(name for name in MEMBERS if name in names)
    said = headline.title(found, SCHEMA)
    assert ("of its own" in said) == (len(names) < 3)
    assert said.startswith("all 3 attributes" if len(names) == 3 else f"{len(names)} of 3 attributes")


@pytest.mark.parametrize("names", ["nose", "only", "hue,hue", "hue,", ""])
def test_a_set_that_the_data_has_not_is_refused(names: str) -> None:
    with pytest.raises(InputError, match=r"--headline"):
        headline.chosen(SCHEMA, names)


# --- refusal ------------------------------------------------------------------------------------------------

SHARES = st.one_of(st.none(), st.just(math.nan), st.floats(0, 1), st.just(headline.READABLE))


@given(st.fixed_dictionaries({a.name: SHARES for a in SCHEMA}), st.integers(1, 100))
def test_there_is_a_headline_only_where_every_member_is_read_well(
    accuracy: dict[str, float | None], epochs: int
) -> None:
    one = judge_of(SCHEMA, accuracy, epochs=epochs)
    weak = [name for name in MEMBERS if not (accuracy[name] or 0) >= headline.READABLE]
    scores = scores_of(one, np.zeros((5, 4), int), np.zeros((5, 4), int))
    assert (one.refused is None) == (not weak) == (scores.mean.mean == 1)
    assert one.headline == MEMBERS  # however badly they are read
    if one.refused:
        assert math.isnan(scores.mean.mean) and "\n" not in one.refused
        assert all(name in one.refused for name in weak) and f"--epochs {2 * epochs}" in one.refused
        told = fidelity(one, scores, scores)
        assert told["mean"] is None and told["ceiling"] is None and told["refused"] == one.refused


def test_what_a_judge_reads_badly_lowers_no_bar() -> None:
    """The same readings by a judge that is weak in what is missed: no mean of the rest takes the place."""
    labels, read = np.zeros((10, 4), int), np.array([[0, 1, 0, 0]] * 10)  # every hue is missed
    good = judge_of(SCHEMA, dict.fromkeys(("shape", "hue", "only", "size"), 0.95))
    weak = judge_of(SCHEMA, {"shape": 0.95, "hue": 0.5, "only": 1.0, "size": 0.95})
    assert scores_of(good, read, labels).mean.mean == pytest.approx(2 / 3)
    assert math.isnan(scores_of(weak, read, labels).mean.mean)
    assert "hue in 50.0 %" in (weak.refused or "")
    own = judge_of(SCHEMA, {"shape": 0.95, "hue": 0.5, "only": 1.0, "size": 0.95}, headline=["shape", "size"])
    assert scores_of(own, read, labels).mean.mean == 1 and own.columns == [0, 3]


def test_where_nothing_varies_there_is_nothing_to_read() -> None:
    one = judge_of((Attribute("only", 1),), {"only": 1.0})
    scores = scores_of(one, [[0]], [[0]])
    told = fidelity(one, scores, scores)
    assert "nothing to read" in told["refused"] and told["all"] is None and told["all_refused"]


# --- corrected for chance and for the judge -----------------------------------------------------------------


def readings(
    random: np.random.Generator, count: int, right: float, schema: tuple[Attribute, ...] = SCHEMA
) -> tuple[Any, Any]:
    """Uniform labels, and what is read: the label with this probability, else one at random."""
    variants = [a.variants for a in schema]
    labels, guess = (random.integers(0, variants, (count, len(variants))) for _ in range(2))
    return np.where(random.random(labels.shape) < right, labels, guess), labels


def test_the_corrected_mean_is_one_for_real_images_and_nought_for_shuffled_labels() -> None:
    random = np.random.default_rng(0)
    one = judge_of(SCHEMA, dict.fromkeys(("shape", "hue", "only", "size"), 0.95))
    read, labels = readings(random, 4000, 0.8)
    real = scores_of(one, read, labels)
    itself, shuffled = fidelity(one, real, real)["all"], []
    assert itself["mean"] == pytest.approx(1) and itself["count"] == 3
    for _ in range(200):
        scores = scores_of(one, read, random.permutation(labels))
        shuffled.append(fidelity(one, scores, real)["all"])
    assert np.mean([row["mean"] for row in shuffled]) == pytest.approx(0, abs=0.005)
    assert any(row["mean"] < 0 for row in shuffled)  # nothing is clipped
    assert 0.9 < np.mean([row["low"] <= 0 <= row["high"] for row in shuffled]) < 0.99


def test_the_corrected_means_interval_covers_the_truth_with_the_judges_share_in_it() -> None:
    random, inside = np.random.default_rng(1), 0
    chance = np.array([1 / 3, 1 / 4, 1, 1 / 2])
    for _ in range(300):
        pairs = [readings(random, count, right) for count, right in ((300, 0.5), (200, 0.8))]
        counted = [random.random(read.shape) < 0.8 for read, _ in pairs]
        (drawn, real), use = [read == labels for read, labels in pairs], [0, 1, 3]
        mean = corrected_mean(
            drawn[:, use], counted[0][:, use], real[:, use], counted[1][:, use], chance[use]
        )
        inside += mean.low <= 0.5 / 0.8 <= mean.high
    assert 0.92 <= inside / 300 <= 0.98


def test_the_corrected_mean_of_one_attribute_is_the_formula_and_its_interval_has_a_width() -> None:
    hit, every = np.arange(10)[:, None] < 6, np.ones((10, 1), bool)
    real = np.arange(20)[:, None] < 18
    mean = corrected_mean(hit, every, real, np.ones((20, 1), bool), np.array([0.25]))
    assert mean.mean == pytest.approx((0.6 - 0.25) / (0.9 - 0.25))
    perfect = corrected_mean(every, every, every, every, np.array([0.25]))
    assert perfect.mean == 1 and perfect.low < 1 < perfect.high


def test_a_judge_that_reads_by_chance_alone_gives_no_corrected_mean() -> None:
    one = judge_of(SCHEMA, dict.fromkeys(("shape", "hue", "only", "size"), 0.95))
    read, labels = readings(np.random.default_rng(2), 300, 1.0)
    read[:, 1] = 0  # of the hue it sees nothing
    scores = scores_of(one, read, labels)
    told = fidelity(one, scores, scores)
    assert told["all"] is None and "hue no better than chance" in told["all_refused"]
    few = fidelity(one, scores_of(one, read[:1], np.full((1, 4), -1)), scores)
    assert few["all"] is None and "none shows shape, hue, size" in few["all_refused"]


# --- what is said -------------------------------------------------------------------------------------------


def test_the_number_of_attributes_stands_next_to_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    one = judge_of(SCHEMA, dict.fromkeys(("shape", "hue", "only", "size"), 0.95))
    scores = scores_of(one, *readings(np.random.default_rng(3), 100, 0.9))
    told = fidelity(one, scores, scores)
    first, second = words(told)
    assert "ALL 3 ATTRIBUTES" in first and "over all 3, corrected" in second
    record.show({"fidelity": told}, "Fidelity")
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == [first, second]  # the last lines are the headline and what stands beside it
