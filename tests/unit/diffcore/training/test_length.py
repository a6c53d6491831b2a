"""The length of a run by minutes: how a config says it, and what follows from a speed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.training.meters import length
from diffcore.training.meters.length import Length

DEMO = REPOSITORY / "configs" / "demo.yaml"
SPEEDS = st.floats(1e-6, 1e6)


@given(SPEEDS, st.floats(1e-6, 1e7))
def test_the_steps_fit_into_the_time_and_no_step_more_would(speed: float, minutes: float) -> None:
    steps = Length(minutes=1, seconds_per_step=speed, ranks=1).steps(minutes)
    assert steps >= length.FEWEST
    if steps > length.FEWEST:
        assert steps * speed <= 60 * minutes * (1 + 1e-12)
    assert (steps + 1) * speed >= 60 * minutes * (1 - 1e-12)


@given(SPEEDS, st.floats(1e-3, 1e6), st.floats(1e-3, 1e6))
def test_a_longer_run_is_a_longer_one_of_the_same_speed(speed: float, one: float, other: float) -> None:
    record = Length(minutes=one, seconds_per_step=speed, ranks=1)
    assert (record.steps(one) <= record.steps(other)) or one > other


def test_a_record_says_what_it_said(tmp_path: Path) -> None:
    assert length.kept(tmp_path) is None
    record = Length(minutes=15.0, seconds_per_step=0.3, ranks=2)
    length.keep(tmp_path, record)
    length.keep(tmp_path, Length(minutes=15.0, seconds_per_step=9.0, ranks=2))  # it was fixed before
    assert length.kept(tmp_path) == record
    assert record.steps(15.0) == 3000


@pytest.mark.parametrize("text", ["{}", "[", '{"minutes": -1, "seconds_per_step": 1.0, "ranks": 1}'])
def test_a_damaged_record_is_an_error(text: str, tmp_path: Path) -> None:
    (tmp_path / length.FILE).write_text(text)
    with pytest.raises(InputError, match=length.FILE):
        length.kept(tmp_path)


@pytest.mark.parametrize(
    ("train", "words"),
    [
        ({"minutes": 5, "steps": 10}, "steps 10 and minutes 5: give one of them"),
        ({}, "key 'train.steps' is missing, or 0.*or give train.minutes"),
        ({"steps": 0}, "key 'train.steps' is missing, or 0"),
        ({"minutes": 0}, "minutes: .*greater than 0"),
        ({"minutes": 5, "stages": [{"side": 32, "until": 10}]}, "until must be shares of the steps"),
        ({"minutes": "inf"}, "minutes"),
        ({"steps": -1}, "steps: .*greater than or equal to 0"),
    ],
)
def test_a_config_has_one_of_the_two(train: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(DEMO.read_text()) | {"train": train}))
    with pytest.raises(InputError, match=words):
        configure.load(path)


def test_what_is_said_later_takes_the_others_place(tmp_path: Path) -> None:
    """On the command line, in a YAML that extends another, and in a config that is changed."""
    by_minutes = configure.parse(["--config", str(DEMO), "--train.minutes", "7.5"])
    assert (by_minutes.train.steps, by_minutes.train.minutes) == (0, 7.5)
    assert by_minutes.train.log_every == configure.load(DEMO).train.log_every
    path = tmp_path / "c.yaml"
    path.write_text(f"extends: {DEMO}\ntrain: {{minutes: 3}}\n")
    extended = configure.load(path)
    assert (extended.train.steps, extended.train.minutes) == (0, 3.0)
    back = configure.load(path, {"train": {"steps": 5}})
    assert (back.train.steps, back.train.minutes) == (5, None)
    assert configure.replace(extended, "train", {"steps": 5}) == back
    assert configure.replace(extended, "train", {"log_every": 7}).train.minutes == 3.0
    with pytest.raises(InputError, match="give one of them"):
        configure.load(path, {"train": {"steps": 5, "minutes": 2}})


def test_a_config_by_minutes_loads_back_equal(tmp_path: Path) -> None:
    loaded = configure.load(DEMO, {"train": {"minutes": 2}})
    (tmp_path / "config.yaml").write_text(loaded.to_yaml())
    assert configure.load(tmp_path / "config.yaml") == loaded


def test_each_stage_is_timed_on_its_own_images_and_counts_by_its_share(tmp_path: Path) -> None:
    stages = [{"side": 16, "until": 0.25}, {"side": 32, "until": 0.75}]
    config = configure.load(DEMO, {"train": {"minutes": 5, "stages": stages}})
    parts = length._parts(config)
    assert [share for share, _ in parts] == [0.25, 0.5, 0.25]
    assert [{part.train.side(step, 64) for step in (0, 1000)} for _, part in parts] == [{16}, {32}, {64}]
    assert [share for share, _ in length._parts(configure.load(DEMO))] == [1.0]
