"""Grids that were asked for: the rows, what their caption and names say, and the record of every cell."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from diffbase.page import pictures
from diffcore import sample
from diffcore.runs import grid
from diffcore.runs.model import TrainedModel, load_model
from shards.schema import Attribute
from tests.support import tiny_run

SCHEMA = [Attribute("hair", 3, ("black", "grün", "red")), Attribute("lid", 2)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run.write(tmp_path_factory.mktemp("grid") / "run", 1, schema=SCHEMA)


@pytest.fixture(scope="module")
def model(run: Path) -> TrainedModel:
    return load_model(run)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({}, ""),
        ({"hair": 0, "lid": 1}, "hair=black  lid=1"),
        ({"hair": 1}, "hair=1"),  # the font has no such letter
        ({"hair": -1}, "hair=unknown"),
    ],
)
def test_what_was_asked_is_said_by_name(wanted: dict[str, int], said: str) -> None:
    assert grid.asked(SCHEMA, wanted) == said


def test_rows_are_told_apart(model: TrainedModel) -> None:
    def names(models: dict[str, TrainedModel], scales: tuple[float, ...], each: str | None) -> list[str]:
        return [row.name for row in grid.rows_of(models, scales, {"lid": 1}, each)]

    two = {"raw": model, "ema": model}
    assert names({"ema": model}, (2.0,), None) == [""]
    assert names(two, (1.0, 2.0), None) == [f"{w}, guidance {s}" for w in ("raw", "ema") for s in (1, 2)]
    assert names({"ema": model}, (2.0,), "Hair") == ["hair=black", "hair=1", "hair=red"]
    both = names(two, (2.0,), "hair")
    assert both[:2] == ["hair=black, raw, guidance 2", "hair=black, ema, guidance 2"]
    assert len(set(both)) == len(both) == 6
    for each, words in {"hat": "allowed are hair, lid", "lid": "--set gives it already"}.items():
        with pytest.raises(InputError, match=words):
            names(two, (1.0,), each)


def test_a_row_for_each_variant(run: Path, model: TrainedModel, tmp_path: Path) -> None:
    flags = ["--each", "hair", "--set", "lid=1", "--samples", "2", "--seed", "3", "--out"]
    sample.main([str(run), *flags, str(tmp_path / "a.png")])
    record = json.loads((tmp_path / "a.json").read_text())
    cells = record["cells"]
    assert record["set"] == {"lid": 1} and [c["attributes"]["lid"] for c in cells] == [1] * 6
    assert [(c["row"], c["column"], c["attributes"]["hair"]) for c in cells] == [
        (row, column, row) for row in range(3) for column in range(2)
    ]
    rows = [model.sample(2, hair=hair, lid=1, seed=3) for hair in range(3)]
    tiled = pictures.grid(np.concatenate(rows), columns=2)
    shown = np.asarray(Image.open(tmp_path / "a.png"))
    assert (shown[-tiled.shape[0] :, -tiled.shape[1] :] == tiled).all()


def test_a_caption_says_what_was_asked(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    whole = pictures.with_caption

    def with_caption(image: np.ndarray, lines: list[str]) -> np.ndarray:
        said.append(lines)
        return whole(image, lines)

    monkeypatch.setattr(pictures, "with_caption", with_caption)
    flags = ["--samples", "2", "--guidance", "1.5", "--seed", "7", "--out"]
    sample.main([str(run), "--set", "hair=red", "--set", "lid=unknown", *flags, str(tmp_path / "a.png")])
    sample.main([str(run), *flags, str(tmp_path / "b.png")])
    sample.main([str(run), "--each", "lid", *flags, str(tmp_path / "c.png")])
    sample.main([str(run), "--sampler", "ddpm", *flags, str(tmp_path / "d.png")])
    how = "step 1, ddim 3 steps, guidance 1.5, seed 7"
    assert said == [
        ["hair=red  lid=unknown", how],
        ["nothing asked for: all at random", how],
        ["as each row says, the rest at random", how],
        ["nothing asked for: all at random", "step 1, ddpm all steps, guidance 1.5, seed 7"],
    ]
