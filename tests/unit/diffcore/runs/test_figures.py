"""What a run has to show, in few lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffcore import summary
from diffcore.runs import figures


def test_a_summary_is_ten_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"train/loss": 1.25, "train/images_per_second": 180.4, "train/samples": 1200, "step": 50}
    last = row | {"step": 2800, "train/loss": 0.0625, "train/samples": 67_200}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (row, last)))
    one = {"samples": 243, "asked": 0.918, "real_images": 1.0, "shuffled_wishes": 0.1}
    (tmp_path / "colors.json").write_text(json.dumps({"agreement": {"hair_color": one, "face_color": one}}))
    (tmp_path / "memory.txt").write_text("many lines\n")
    summary.main([str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    told = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[1] for line in lines}
    assert len(told) == len(lines) <= 10 and told["run"] == str(tmp_path)
    assert told["trained"] == "2,800 steps, 67,200 images, 180 images/s"
    assert told["loss"] == "1.2500 at first, 0.0625 at last"
    assert told["hair_color"] == "91.8% of 243 as asked (real images 100.0%, shuffled wishes 10.0%)"
    assert (told["pictures"], told["reports"]) == ("none yet", str(tmp_path / "memory.txt"))
    assert f"sample {tmp_path} --out" in told["next"] and str(tmp_path / "tensorboard") in told["tensorboard"]
    summary.main([str(tmp_path), "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert tree == figures.figures(tmp_path) and tree["colors"]["face_color"] == one
