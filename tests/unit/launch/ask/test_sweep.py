"""Sweeps: every combination, or the points one by one; each a run of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from launch.ask import sweep

CONFIG = REPOSITORY / "configs" / "demo.yaml"


def load(folder: Path, text: str) -> list[sweep.Point]:
    path = folder / "sweep.yaml"
    path.write_text(text)
    return sweep.load(path, CONFIG, ["--run", "/runs/s", "--train.steps", "5"])


def test_all_combinations(tmp_path: Path) -> None:
    points = load(tmp_path, "optimizer.lr: [1.0e-4, 3.0e-4]\nmodel.channels: [[32, 64, 96], [32, 64, 128]]\n")
    told = [(p.config.optimizer.lr, p.config.run.name, p.config.train.steps) for p in points]
    assert told == [(1e-4, "000", 5), (1e-4, "001", 5), (3e-4, "002", 5), (3e-4, "003", 5)]
    assert points[1].values == {"optimizer.lr": 1e-4, "model.channels": [32, 64, 128]}


def test_points_one_by_one(tmp_path: Path) -> None:
    points = load(tmp_path, "- {seed: 1}\n- {seed: 2, optimizer.lr: 1.0e-3}\n")
    assert [p.config.seed for p in points] == [1, 2]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed: 3", "seed: expected a list of values, got 3"),
        ("seed: [1]", "a sweep has 2 to 1000 points, this one 1"),
        ("seeds: [1, 2]", "point 0: unknown argument '--seeds'"),
        ("optimizer.lr: [1.0, -1]", "point 1: "),
        ("run: [a, b]", "every point has its own run"),
        ("[]", "a sweep has 2 to 1000 points"),
        ("word", "expected config fields with lists of values"),
        ("a: [", "not a YAML file"),
    ],
)
def test_mistakes_are_told(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        load(tmp_path, text)
    assert line in str(error.value)


def test_combinations_beyond_the_most_are_not_made(tmp_path: Path) -> None:
    many = ", ".join(map(str, range(2000)))
    with pytest.raises(InputError, match="this one more than 1000"):
        load(tmp_path, f"seed: [{many}]\ntrain.steps: [{many}]\nbatch.size: [{many}]\n")


@pytest.mark.parametrize("key", ["help", "config", "local_rank", "-h", "seed=3", "a b", "", "Seed", "run"])
def test_a_key_is_a_field(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a dotted config field is wanted"):
        load(tmp_path, f"{key!r}: [1, 2]")


@pytest.mark.parametrize("value", ["-x", "--help", "", "a b"])
def test_a_value_is_no_flag(value: str, tmp_path: Path) -> None:
    points = load(tmp_path, f"- {{data.path: {value + 'y'!r}}}\n- {{seed: 2}}\n")
    assert isinstance(points[0].config.data.path, Path) and points[0].config.data.path.name == value + "y"
