"""The demo's chain of commands, end to end, on few avatars and few steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, Finished, run

pytestmark = pytest.mark.draws


def python(*arguments: str | Path) -> Finished:
    finished = run([sys.executable, *map(str, arguments)], cwd=REPOSITORY)
    assert finished.code == 0, finished.out + finished.err
    return finished


def test_render_pack_train_sample_report(tmp_path: Path) -> None:
    avatars, packed, folder = tmp_path / "avatars", tmp_path / "packed", tmp_path / "run"
    python("-m", "shards.render", "--out", avatars, "--count", "150", "--seed", "0")
    python("-m", "shards.pack", avatars, "--out", packed, "--size", "32")
    python("-m", "shards.verify", packed)
    # fmt: off
    python(
        "diffcore/train.py", "--config", "configs/demo.yaml", "--run", folder, "--data.path", packed,
        "--model.channels", "8,16", "--model.attention_levels", "1", "--train.steps", "3",
        "--sampling.steps", "2",
    )
    # fmt: on
    python(
        "-m", "diffcore.sample", "--run", folder, "--count", "3", "--out", folder / "samples" / "asked.png"
    )
    colors = python("-m", "diffcore.evaluation.colors", "--run", folder, "--samples", "64")
    assert len(colors.out.splitlines()) == 2
    agreement = json.loads((folder / "colors.json").read_text())["agreement"]
    for name in ("hair_color", "face_color"):
        # Three steps teach nothing, so the samples are at chance; the rule itself reads real avatars.
        assert agreement[name]["real_images"] >= 0.98
        assert agreement[name]["shuffled_wishes"] < 0.4

    summary = python("-m", "diffcore.summary", folder).out
    printed = dict(line.split(maxsplit=1) for line in summary.splitlines())
    assert len(summary.splitlines()) <= 10
    assert printed["pictures"] == str(folder / "samples" / "asked.png")
    assert printed["reports"] == f"{folder / 'report.html'}, {folder / 'memory.txt'}"
    assert f"--logdir {folder / 'tensorboard'}" in printed["tensorboard"]
    assert "as asked (real images" in printed["hair_color"] and "parameters" in printed["trained"]
    for name in ("hair_color", "face_color"):
        assert f"{name}: {printed[name]}" in colors.out.splitlines()
