"""The findings' command: trains, measures and writes the page, and does nothing twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffcore.config import configure
from diffcore.evaluation import findings
from diffcore.evaluation.studies import findings as study


def test_the_command_trains_measures_and_writes(
    judged: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny = {
        "data": {"path": str(judged)},
        "train": {"steps": 4, "checkpoint_every": 2, "log_every": 1},
        "sampling": {"every": 4, "steps": 2},
    }

    real_load = configure.load
    # The plan's configs are tiny; what they are compared with is one-hot.yaml as train.py reads it.
    monkeypatch.setattr(study, "NAMES", ("one-hot",))
    monkeypatch.setattr(configure, "load", lambda path, tree=None: real_load(path, tree and tree | tiny))
    command = ["--runs", str(tmp_path / "runs"), "--out", str(tmp_path / "f.md"), "--seeds", "2"]
    findings.main([*command, "--samples", "16"])
    page = (tmp_path / "f.md").read_text()
    assert "Not run: one-hot, unit-pixels, all with 2 seeds." in page and (tmp_path / "f.svg").exists()
    for run in ("000", "001"):
        points = json.loads((tmp_path / "runs" / run / "points.json").read_text())["points"]
        assert [point["step"] for point in points] == [2, 4]
        assert "quality/" not in (tmp_path / "runs" / run / "metrics.jsonl").read_text()  # measured once
    capsys.readouterr()
    findings.main([*command, "--samples", "16"])
    assert "done" not in capsys.readouterr().out
