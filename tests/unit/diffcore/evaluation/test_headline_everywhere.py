"""Wherever a fidelity is written, the number of attributes is beside it, and none where the judge is weak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from diffbase.cli import InputError
from diffcore import evaluate
from diffcore.evaluation import points, sweep, train_judge
from shards import pack
from shards.table import Index
from tests.support import tiny_run


def run_of(folder: Path, *, noise: bool) -> Path:
    """An untrained run on packed squares of two colours, with their judge; ``noise``: nothing to read."""
    random = np.random.default_rng(0)
    for kind in range(2):
        (folder / "images" / f"kind {kind}").mkdir(parents=True)
        for i in range(30):
            pixels = np.full((16, 16, 3), 255, np.uint8)
            pixels[3:13, 3:13] = random.integers(0, 256, (10, 10, 3)) if noise else np.eye(3)[kind] * 220
            Image.fromarray(pixels).save(folder / "images" / f"kind {kind}" / f"{i}.png")
    data = folder / "shards"
    pack.main([str(folder / "images"), "--out", str(data), "--size", "16", "--jobs", "1", "--val", "0.3"])
    train_judge.main([str(data), "--epochs", "1" if noise else "6", "--width", "8"])
    index = Index.load(data)
    run = tiny_run.write(folder / "run", 10, schema=index.schema, size=16, fingerprint=index.fingerprint)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("nowhere", str(data)))
    return run


@pytest.fixture(scope="module", params=[False, True], ids=["a good judge", "a weak judge"])
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bool]:
    return run_of(tmp_path_factory.mktemp("run"), noise=request.param), request.param


def written(run: Path, name: str) -> Any:
    return json.loads((run / name).read_text())


def test_in_the_report(judged: tuple[Path, bool], capsys: pytest.CaptureFixture[str]) -> None:
    run, weak = judged
    evaluate.main([str(run), "--samples", "20", "--steps", "2"])
    fidelity, told = written(run, "quality.json")["fidelity"], capsys.readouterr().out
    assert (fidelity["count"], fidelity["over"]) == (1, ["class"])
    assert (fidelity["mean"] is None) == (fidelity["ceiling"] is None) == weak
    assert bool(fidelity["refused"]) == weak
    page = (run / "quality.html").read_text()
    assert ("no headline fidelity" in told and "no headline fidelity" in page) == weak
    assert ("ONE ATTRIBUTE" in told and "over one attribute" in page) == (not weak)
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    tags = board.Tags()["scalars"]
    assert ("evaluate/fidelity/mean" in tags) == (not weak)
    assert board.Scalars("evaluate/fidelity/attributes_in_mean")[-1].value == 1
    for name in ("background", "checkerboard"):
        assert written(run, "quality.json")[name]


def test_in_every_checkpoints_point(judged: tuple[Path, bool]) -> None:
    run, weak = judged
    points.main([str(run), "--samples", "8"])
    tree = written(run, "points.json")
    assert (tree["count"], tree["over"], bool(tree["refused"])) == (1, ["class"], weak)
    for point in tree["points"]:
        assert (point["fidelity"] is None) == (point["variety"] is None) == weak
        assert point["fidelity_attributes"] == 1
        assert (point["fidelity_all"] is None) == weak


def test_in_a_sweep(judged: tuple[Path, bool], capsys: pytest.CaptureFixture[str]) -> None:
    run, weak = judged
    command = [str(run), "--samples", "4", "--repeats", "2", "--scales", "0,1", "--samplers", "ddim"]
    if weak:
        with pytest.raises(InputError, match="no headline fidelity"):
            sweep.main([*command, "--steps", "2"])
        return
    sweep.main([*command, "--steps", "2"])
    assert "over 1 attributes" in capsys.readouterr().out
    for name in ("sweep.json", "sampling.json"):
        assert (written(run, name)["count"], written(run, name)["over"]) == (1, ["class"])
    assert "Fidelity is over one attribute" in (run / "sweep.html").read_text()
