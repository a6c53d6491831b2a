"""The experiments: their plan, their verdicts on made-up figures, and pixels in [0, 1]."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml
from scipy import stats

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.diffusion import Diffusion
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.evaluation import findings as command
from diffcore.evaluation.studies import curve as points
from diffcore.evaluation.studies import findings, findings_page
from diffcore.evaluation.studies.estimate import student_t


@pytest.mark.parametrize("scale", ["cpu", "full"])
def test_the_sweep_file_makes_the_planned_runs(scale: str, tmp_path: Path) -> None:
    out = tmp_path / "points.yaml"
    command.main(["--sweep", str(out), "--seeds", "2", "--scale", scale])
    swept = yaml.safe_load(out.read_text())
    planned = findings.plan(tmp_path / "runs", 2, scale)
    assert len(swept) == len(planned) == 2 * len(findings.NAMES)
    for values, point in zip(swept, planned, strict=True):
        # As launch/submit.py reads it: dotted fields over the base's YAML.
        flags = [word for key, value in values.items() for word in (f"--{key}", findings._written(value))]
        base = ["--config", str(findings.CONFIGS / "one-hot.yaml"), "--run", str(point.run)]
        assert configure.parse([*base, *flags]) == point.config
    identities = {str(point.config.identity()) + str(point.config.data.path) for point in planned}
    assert len(identities) == len(planned)


def test_checkpoints_that_an_interruption_saved_are_not_measured() -> None:
    config = configure.load(findings.CONFIGS / "one-hot.yaml", {"train": {"steps": 700}})
    folders = [Path(f"step-{step:08d}") for step in (300, 412, 600, 700)]
    assert points.planned(config, folders) == [300, 600, 700]


def test_one_seed_is_no_experiment() -> None:
    with pytest.raises(InputError, match="--seeds 1: allowed: 2 to 16"):
        command.main(["--seeds", "1"])


def curve(last: float, *before: float, loss: float = 0.1, weights: str = "ema") -> list[dict[str, Any]]:
    shares = [*before, last]
    return [
        {
            "step": 100 * (i + 1), "images": 3200 * (i + 1), "weights": weights, "loss": loss / (i + 1),
            "fidelity": share, "variety": share, "spread": 50.0, "frechet": 1.0,
            "attributes": {name: {"share": share, "count": 500} for name in findings_page.COLORS},
        }
        for i, share in enumerate(shares)
    ]  # fmt: skip


def runs(**curves: list[list[dict[str, Any]]]) -> dict[str, Any]:
    return {
        name.replace("_", "-"): [{"points": points, "samples": 500} for points in seeds]
        for name, seeds in curves.items()
    }


def test_a_clear_difference_holds_and_a_vague_one_is_undecided() -> None:
    ahead = [curve(0.9, 0.60), curve(0.9, 0.61), curve(0.9, 0.59)]
    behind = [curve(0.9, 0.30), curve(0.9, 0.29), curve(0.9, 0.30)]
    vague = [curve(0.9, 0.30), curve(0.9, 0.90), curve(0.9, 0.58)]
    assert findings_page.finding_1(runs(one_hot=ahead, unit_pixels=behind))[0] == "holds"
    assert findings_page.finding_1(runs(one_hot=behind, unit_pixels=ahead))[0] == "the opposite holds"
    assert findings_page.finding_1(runs(one_hot=ahead, unit_pixels=vague))[0] == "undecided"
    assert findings_page.finding_4(runs(one_head=ahead, one_head_double_tau=ahead))[0] == "holds"


def test_a_colour_lost_while_the_loss_falls_is_found() -> None:
    lost = curve(0.5, 0.3, 0.7, weights="raw")
    kept = curve(0.72, 0.3, 0.7, weights="raw")
    verdict, text = findings_page.finding_7(runs(constant_rate=[lost, lost, kept]))
    assert verdict == "holds for some seeds" and "70.0 % to 50.0 %" in text
    assert findings_page.finding_7(runs(constant_rate=[kept, kept]))[0] == "does not hold"


def test_the_page_says_what_is_missing(tmp_path: Path) -> None:
    some = {
        (name, seed): {"points": curve(last, first), "samples": 500}
        for seed in range(2)
        for name, last, first in (("one-hot", 0.9, 0.6 + seed / 1000), ("unit-pixels", 0.8, 0.3))
    }
    planned = findings.plan(tmp_path, 2, "cpu")
    text = findings_page.page(some, planned, (32, 64), "command", "curves.svg")
    assert "## 1. Pixels in [0, 1] learn far slower than in [-1, 1]: holds" in text
    assert "## 3. One-hot attributes learn faster than integers: open" in text
    assert "Not run: one-hot, integers, all with 2 seeds." in text and "(curves.svg)" in text
    del some["unit-pixels", 1]
    text = findings_page.page(some, planned, (32, 64), "command", "curves.svg")
    assert "## 1. Pixels in [0, 1] learn far slower than in [-1, 1]: open" in text
    drawing = ElementTree.fromstring(findings_page.picture(some))
    assert len(drawing.findall("{*}polyline")) == 2


def measured(seeds: int, **gains: list[float]) -> dict[tuple[str, int], Any]:
    """One-hot and other experiments, whose first checkpoint is behind it by a gain, in turns."""
    found = {("one-hot", seed): {"points": curve(0.9, 0.5)} for seed in range(seeds)}
    for name, by in gains.items():
        for seed in range(seeds):
            found[name.replace("_", "-"), seed] = {"points": curve(0.9, 0.5 - by[seed % len(by)])}
    return found


def test_what_a_look_decides_stays_decided() -> None:
    assert findings_page.looks(16) == (8, 12, 16) and findings_page.looks(9) == (8,)
    assert findings_page.looks(5) == (5,)
    rows = measured(16, unit_pixels=[0.2, 0.21], integers=[0.3, -0.3])
    early, late = (findings_page.verdict(number, rows, 16) for number in (1, 3))
    assert (early.said, early.seeds) == ("holds", 8) and (late.said, late.seeds) == ("undecided", 16)
    for seed in range(8, 16):  # had it been looked at later
        rows["unit-pixels", seed] = {"points": curve(0.9, 0.9)}
    assert findings_page.verdict(1, rows, 16) == early
    left = findings_page.needed(rows, 16)
    assert {"one-hot", "integers", "one-head"} <= left and "unit-pixels" not in left


def test_a_gain_too_small_to_matter_does_not_hold() -> None:
    rows = measured(8, unit_pixels=[0.004, -0.004])
    assert findings_page.verdict(1, rows, 8).said == "does not hold"
    rows = measured(8, unit_pixels=[-0.104, -0.1])
    assert findings_page.verdict(1, rows, 8).said == "the opposite holds"


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 7, 11, 15, 40])
@pytest.mark.parametrize("share", [0.6, 0.975, 0.9917, 0.9995])
def test_students_t_is_scipys(freedom: int, share: float) -> None:
    assert student_t(share, freedom) == pytest.approx(stats.t.ppf(share, freedom), rel=1e-9)


def test_the_runs_of_a_look_are_those_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned, done = findings.plan(tmp_path, 16, "cpu"), []

    def one(point: findings_page.Point, *_: Any) -> None:
        done.append((point.name, point.seed))
        point.run.mkdir(parents=True)
        clear = {"unit-pixels": 0.2, "one-head": 0.5, "half-scale": 0.9}.get(point.name, 0.9)
        drawn = curve(clear + 0.001 * point.seed, clear - 0.1) + curve(0.9, 0.5, weights="raw")
        if point.name == "integers":
            drawn = curve(0.5, 0.9 if point.seed % 2 else 0.6)
        (point.run / points.FILE).write_text(json.dumps({"samples": 500, "points": drawn}))

    monkeypatch.setattr(findings.experiments, "prepare", lambda *_, **__: None)
    monkeypatch.setattr(findings.experiments, "at_once", lambda work, _: [call() for call in work])
    monkeypatch.setattr(findings, "_one", one)
    rows = findings.repeat(planned, "cpu", 1, 500)
    assert len(done) == len(set(done))
    assert {seed for name, seed in done if name == "unit-pixels"} == set(range(8))
    assert {seed for name, seed in done if name == "integers"} == set(range(16))
    assert findings_page.verdict(3, rows, 16).said == "undecided"


@pytest.mark.parametrize("name", ["fidelity", "variety"])
def test_a_judge_that_reads_nothing_ends_it_in_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = findings.plan(tmp_path, 2, "cpu")[:1]
    planned[0].run.mkdir()
    written = {"samples": 500, "refused": "no headline", "points": [curve(0.5)[0] | {name: None}]}
    (planned[0].run / points.FILE).write_text(json.dumps(written))
    monkeypatch.setattr(findings.experiments, "prepare", lambda *_, **__: None)
    with pytest.raises(InputError, match=r"000/points\.json: no headline"):
        findings.repeat(planned, "cpu", 1, 500, collect=True)


def test_unit_pixels_are_the_same_images_in_another_range() -> None:
    images = torch.rand(4, 3, 8, 8) * 2 - 1
    for scale in (1.0, 0.5):
        schedule = NoiseSchedule.of(Diffusion(pixels="unit", input_scale=scale))
        x0 = schedule.scale(images)
        torch.testing.assert_close(x0, scale * (images + 1) / 2)
        torch.testing.assert_close(schedule.unscale(x0), images)
        torch.testing.assert_close(schedule.clamp(3 * x0 - 1), (3 * x0 - 1).clamp(0, scale))
