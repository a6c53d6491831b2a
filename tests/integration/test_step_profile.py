"""What the host waits for in a step, steps left out, and the profile of chosen ones, under real DeepSpeed."""

from __future__ import annotations

import gzip
import json
import stat
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, run
from tests.support import numerics

LATE = {"outcome.py:applied": 1}
"""Whether ZeRO-0's device left the step before out: on a GPU of pinned memory, and nothing waits."""
NORM = {"gradient_norm.py:has_overflow": 1, "utils.py:is_invalid_grad_norm": 2}
"""DeepSpeed decides on the host whether it steps: three looks at one copy of the norm, which lies there."""
DEEPSPEED = {"utils.py:is_invalid_grad_norm": 2, "stage_1_and_2.py:has_overflow": 1}
"""ZeRO-3 decides for itself, twice by the norm: within the step, where nothing can be put between."""
ALLOWED = {0: LATE, 1: NORM, 2: NORM, 3: DEEPSPEED}
"""Reads of a tensor on the host in one step, by ZeRO stage."""


@pytest.fixture(scope="module")
def configs(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reads")
    found = {}
    for zero in ALLOWED:
        for precision in ("fp32", "bf16"):
            engine = f"engine: {{gradient_clipping: 1.0, threads: 1, zero: {zero}, precision: {precision}}}"
            text = numerics.CONFIG.replace("PACKED", str(packed)).replace(
                "run: run", f"run: {zero}{precision}"
            )
            text = text.replace("engine: {gradient_clipping: 0, threads: 1}", engine)
            text = text.replace("train: {", "train: {profile: [2, 3], ")
            path = folder / f"{zero}{precision}.yaml"
            path.write_text(text)
            found[path.stem] = path
    return found


@pytest.fixture(scope="module")
def reads(configs: dict[str, Path]) -> dict[str, dict[str, int]]:
    command = [sys.executable, "-m", "tests.support.host_reads", *map(str, configs.values())]
    finished = run(command, REPOSITORY, ranks=2, timeout=400)
    assert finished.code == 0, finished.out[-3000:] + finished.err[-3000:]
    line = next(line for line in finished.out.splitlines() if line.startswith("{"))
    return {Path(path).stem: found for path, found in json.loads(line).items()}


def test_a_step_reads_no_more_than_what_is_named(reads: dict[str, dict[str, int]]) -> None:
    assert len(reads) == 2 * len(ALLOWED)
    for name, found in reads.items():
        allowed = ALLOWED[int(name[0])]
        assert found.keys() <= allowed.keys(), (name, found)
        assert all(count <= allowed[where] for where, count in found.items()), (name, found)
    assert all(reads.values())  # what is there is seen


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_step_that_is_not_finite_is_left_out_whoever_decides(
    configs: dict[str, Path], tmp_path: Path, ranks: int
) -> None:
    paths = []
    for name, path in configs.items():
        text = path.read_text().replace("profile: [2, 3], ", "").replace("steps: 4,", "steps: 20,")
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(text + "guards: {max_skips: 2}\n")
    command = [sys.executable, "-m", "tests.support.left_out", *map(str, paths)]
    finished = run(command, REPOSITORY, ranks=ranks, timeout=400)
    assert finished.code == 0, finished.out[-3000:] + finished.err[-3000:]
    line = next(line for line in finished.out.splitlines() if line.startswith("{"))
    for path, found in json.loads(line).items():
        end = found.pop("end")
        assert end.startswith("step 7: ") and "2 in a row, 3 ever" in end, (path, end)
        assert "Last good checkpoint: step-00000004" in end, (path, end)
        assert found == {
            "same": True, "updates": 2, "skips": 1, "refused": [], "owed": [False, True], "saved": [4, 3, 0],
            "moved": True, "count": 4.0,
        }, path  # fmt: skip


@pytest.mark.usefixtures("reads")
def test_chosen_steps_are_profiled_on_rank_0(configs: dict[str, Path]) -> None:
    for name, path in configs.items():
        (trace,) = (path.parent / name / "profile").iterdir()
        assert trace.name == "steps-2-3.json.gz" and stat.S_IMODE(trace.stat().st_mode) == 0o600
        events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
        names = [event.get("name", "") for event in events]
        assert "aten::convolution" in names
        # One micro batch a step, and two steps.
        assert names.count("autograd::engine::evaluate_function: MseLossBackward0") == 2
