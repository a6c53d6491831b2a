"""The board of recipes, from real runs: interrupted, gone on with, and nothing of it lost."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from tests.integration.conftest import REPOSITORY, run
from tests.support import numerics


def test_two_recipes_take_turns_and_a_second_call_trains_nothing(judged: Path, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(numerics.CONFIG.replace("PACKED", str(judged)))
    (tmp_path / "fast.yaml").write_text("extends: base.yaml\noptimizer: {lr: 2.0e-3}\n")
    script = REPOSITORY / "benchmarks" / "speedrun.py"
    # On one core: a process for each run, and no launcher of several.
    core = min(os.sched_getaffinity(0))
    pinned = f"import os, runpy, sys; os.sched_setaffinity(0, {{{core}}}); sys.argv = sys.argv[1:]; "
    command = [
        sys.executable, "-c", pinned + "runpy.run_path(sys.argv[0], run_name='__main__')", str(script),
        "base.yaml", "fast.yaml", "--seeds", "1", "--points", "2", "--samples", "12", "--curve_samples", "8",
        "--out", "runs", "--page", "docs/speedrun.md",
    ]  # fmt: skip
    first = run(command, cwd=tmp_path, timeout=500)
    assert first.code == 0, first.err[-3000:]
    assert [line for line in first.err.splitlines() if line.startswith("training ")] == [
        "training base-seed0", "training fast-seed0"]  # fmt: skip
    base, fast = found = json.loads((tmp_path / "docs" / "speedrun.json").read_text())
    assert json.loads(first.out) == found
    assert [record["recipe"] for record in found] == ["base", "fast"]
    assert fast["settings"] == base["settings"] | {"optimizer.lr": 2e-3}
    assert fast["against"]["recipe"] == "base" and fast["against"]["gain"]["low"] is None
    for record in found:
        assert record["over"] == ["hair_color", "face_color"] and 0 <= record["fidelity"]["mean"] <= 1
        assert [point["images"] for point in record["curve"]] == [16, 32] and record["images"] == 32
        assert record["flops"] == 2 * record["curve"][0]["flops"] > 0 and record["cpu_seconds"] > 0
    assert base["flops"] == fast["flops"]

    text, second = (tmp_path / "docs" / "speedrun.md").read_text(), run(command, cwd=tmp_path, timeout=200)
    assert second.code == 0, second.err[-3000:]
    assert "training" not in second.err
    assert json.loads((tmp_path / "docs" / "speedrun.json").read_text()) == found
    assert (tmp_path / "docs" / "speedrun.md").read_text() == text

    (tmp_path / "fast.yaml").write_text("extends: base.yaml\noptimizer: {lr: 3.0e-3}\n")
    other = run(command, cwd=tmp_path, timeout=200)
    assert other.code == 2 and "of another recipe (optimizer.lr)" in other.err
