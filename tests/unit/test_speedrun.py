"""The board of recipes: whose turn it is, what a record says, and that none is ever lost."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from benchmarks import speedrun, speedrun_page
from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.evaluation.studies.estimate import Estimate

DEMO = REPOSITORY / "configs" / "demo.yaml"
SHARES = st.floats(0, 1)


def record(name: str, values: list[float], **more: Any) -> dict[str, Any]:
    """As ``record_of`` makes it, of runs of two checkpoints."""
    estimate = speedrun._estimate(Estimate.of(values)) | {"each": values}
    curve = [
        {"images": 40.0, "flops": 1e12, "cpu_seconds": 1.0, "fidelity": values[0] / 2},
        {"images": 80.0, "flops": 2e12, "cpu_seconds": 2.0, "fidelity": estimate["mean"]},
    ]
    return {
        "recipe": name, "settings": {"optimizer.lr": 1e-3}, "seeds": len(values), "fidelity": estimate,
        "over": ["hair", "eyes"], "images": 80.0, "flops": 2e12, "cpu_seconds": 2.0, "curve": curve,
        "machine": "2 cores, a | b", "ranks": 2, "data": "d" * 64, "judge": "j" * 64, "code": "c" * 40,
        "date": "2026-11-27",
    } | more  # fmt: skip


@given(st.integers(1, 6), st.integers(1, 10))
def test_recipes_take_turns(count: int, seeds: int) -> None:
    recipes: list[Any] = [SimpleNamespace(name=str(i)) for i in range(count)]
    order = list(speedrun.turns(recipes, seeds))
    assert len({(seed, recipe.name) for seed, recipe in order}) == len(order) == count * seeds
    for i in range(len(order)):  # at any moment no recipe is more than a run ahead
        had = Counter(recipe.name for _, recipe in order[: i + 1])
        assert max(had.values()) - min(had[recipe.name] for recipe in recipes) <= 1


@given(st.lists(SHARES, min_size=2, max_size=10))
def test_the_interval_is_students(values: list[float]) -> None:
    found = speedrun._estimate(Estimate.of(values))
    half = stats.t.ppf(0.975, len(values) - 1) * stats.sem(values)
    wanted = np.mean(values), np.mean(values) - half, np.mean(values) + half
    assert [found["mean"], found["low"], found["high"]] == pytest.approx(
        wanted, rel=1e-9, abs=1e-3 * half + 1e-9
    )


def test_one_seed_has_no_interval() -> None:
    estimate = speedrun._estimate(Estimate.of([0.5]))
    assert json.loads(json.dumps(estimate)) == {"mean": 0.5, "low": None, "high": None}
    assert speedrun_page.interval(estimate) == "50.0 % (one seed)"


NAMED = st.lists(st.tuples(st.sampled_from("abc"), st.lists(SHARES, min_size=1, max_size=3)), max_size=4)


@given(NAMED, NAMED)
def test_records_are_added_and_never_changed(known: Any, added: Any) -> None:
    old = speedrun.joined([], [record(name, values) for name, values in known])
    new = [record(name, values, date="2027-01-01", code="later") for name, values in added]
    found = speedrun.joined(old, new)
    assert found[: len(old)] == old
    assert speedrun.joined(found, new) == found
    for one in new:  # each is there, be it as an older one
        assert any(all(one[key] == other[key] for key in speedrun_page.KEY) for other in found)


def test_what_is_written_is_read_and_written_again_the_same(tmp_path: Path) -> None:
    out = tmp_path / "docs" / "speedrun.md"
    found = [record("demo", [0.5, 0.6]), record("demo", [0.7, 0.8], against={
        "recipe": "base", "gain": {"mean": 0.1, "low": -0.02, "high": 0.22}})]  # fmt: skip
    speedrun.write(out, found)
    assert speedrun.records(out.with_suffix(".json")) == found
    before = {path.name: path.read_bytes() for path in out.parent.iterdir()}
    speedrun.write(out, speedrun.records(out.with_suffix(".json")))
    assert {path.name: path.read_bytes() for path in out.parent.iterdir()} == before
    text, drawing = out.read_text(), out.with_suffix(".svg").read_text()
    gain = "+10.0 points (-2.0 to +22.0) over base"
    for words in ("2 attributes", "**75.0 %", gain, "2 TFLOP", "80", "2 cores"):
        assert words in text
    assert "](speedrun.svg)" in text and "(speedrun.json)" in text
    assert text.index("demo (2)") < text.index("| demo |")  # the best one first
    assert "demo (2)" in drawing and "training TFLOP" in drawing and drawing.count("<polyline") == 2
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") - line.count("\\|") for line in rows}) == 1  # a processor's name cuts no row


def test_records_of_other_data_or_another_judge_stand_apart() -> None:
    found = [record("a", [0.5]), record("b", [0.6], judge="k" * 64), record("c", [0.7], over=["hair"])]
    text = speedrun_page.page(found, "speedrun.svg")
    assert text.count("| recipe |") == 3 and text.count("## 2 attributes") == 2 and "## 1 attributes" in text


@pytest.mark.parametrize("text", ["{}", '[{"recipe": "a"}]', "[1]"])
def test_a_file_that_holds_no_records_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "speedrun.json"
    assert speedrun.records(path) == []
    path.write_text(text)
    with pytest.raises(InputError, match=r"speedrun\.json"):
        speedrun.records(path)


def test_a_recipe_is_its_settings_and_not_its_places(tmp_path: Path) -> None:
    def settings(text: str, *fields: str) -> dict[str, Any]:
        path = tmp_path / "recipe.yaml"
        path.write_text(f"extends: {DEMO}\n{text}")
        [recipe] = speedrun.read([path], fields)
        return recipe.settings()

    base = settings("")
    assert settings("run: elsewhere\ndata: {path: other, judge: third}\nseed: 4") == base
    assert settings("optimizer: {lr: 5.0e-4}") == base | {"optimizer.lr": 5e-4}
    assert settings("", "--optimizer.lr", "5e-4") == base | {"optimizer.lr": 5e-4}


def test_two_recipes_of_one_name_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "demo.yaml"
    other.write_text(f"extends: {DEMO}\n")
    with pytest.raises(InputError, match="demo: two configs"):
        speedrun.read([DEMO, other], [])


@pytest.mark.parametrize(
    ("quality", "why"),
    [
        ({}, "gives no fidelity of these data"),
        ({"fidelity": {"mean": None, "over": [], "refused": "hair in 71.0 %"}}, "hair in 71.0 %"),
    ],
)
def test_a_judge_that_reads_nothing_gives_no_headline(quality: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=f"judge: {why}"):
        speedrun.headline(quality, Path("judge"))
