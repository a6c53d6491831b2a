"""What a run has cost, as its log, its checkpoints and its summary say it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.system_error import sha256_of
from diffcore.runs import checkpoint, figures, marks
from tests.support import tiny_run

LINE = {
    "step": 2, "train/loss": 1.0, "train/images_per_second": 2.0, "train/samples": 8,
    "spent/images": 12, "spent/flops": 4.2e12, "spent/cpu_seconds": 1234.4,
}  # fmt: skip


def test_a_summary_says_it(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps(LINE) + "\n")
    found = figures.figures(tmp_path)
    assert found["spent"] == {"images": 12, "flops": 4.2e12, "cpu_seconds": 1234.4}
    assert figures.numbers(found)["trained"].endswith("; 4.2 TFLOP, 1,234 CPU seconds")


@pytest.mark.parametrize("value", [None, "many", float("nan"), -1, True, [1]], ids=str)
@pytest.mark.parametrize("name", figures.SPENT)
def test_a_line_that_does_not_say_all_says_nothing(name: str, value: Any) -> None:
    assert figures.spent_of(LINE) and not figures.spent_of(LINE | {f"spent/{name}": value})
    assert not figures.spent_of({"step": 1})


@given(st.floats(1e9, 1e20))
def test_words_of_flops_are_the_number_to_four_digits(flops: float) -> None:
    number, unit = figures.flops_words(flops).replace(",", "").split()
    power = {"GFLOP": 9, "TFLOP": 12, "PFLOP": 15, "EFLOP": 18}[unit]
    assert float(number) * 10**power == pytest.approx(flops, rel=6e-4)


def test_a_list_of_checkpoints_says_it_and_an_older_one_is_listed_without(tmp_path: Path) -> None:
    run = tiny_run.write(tmp_path / "run", 4, 8)
    for step, spent in ((4, None), (8, {"images": 32, "flops": 1e13, "cpu_seconds": 7.0})):
        folder = checkpoint.folder_at(run, step)
        tree = json.loads((folder / "state.json").read_text())
        tree.pop("spent")
        path = folder / "state.json"
        path.write_text(json.dumps(tree | ({} if spent is None else {"spent": spent})))
        manifest = json.loads((folder / "COMPLETE").read_text())
        manifest["state.json"] = {"bytes": path.stat().st_size, "sha256": sha256_of(path)}
        (folder / "COMPLETE").write_text(json.dumps(manifest))
    older, newer = marks.listed(run)
    assert older.damaged is None and not older.spent and "FLOP" not in older.line()
    assert "32 images, 10 TFLOP, 7 CPU seconds" in newer.line()
