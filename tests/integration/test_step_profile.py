"""What a step makes the host wait for, and the profile of chosen steps, under real DeepSpeed."""

from __future__ import annotations

import gzip
import json
import stat
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, run
from tests.support import numerics

STOP = {"stopping.py:last": 1}
"""Of a tensor on the CPU, whatever the device."""
OURS = {"engine.py:step": 1}
"""ZeRO-0's gradient norm, by which a step is left out."""
DEEPSPEED = {"utils.py:is_invalid_grad_norm": 2, "stage_1_and_2.py:has_overflow": 1}
"""It decides for itself, twice by the norm: within the step, where nothing can be put between."""
ALLOWED = {0: STOP | OURS, 1: STOP | DEEPSPEED, 2: STOP | DEEPSPEED, 3: STOP | DEEPSPEED}
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
    assert all("stopping.py:last" in found for found in reads.values())  # what is there is seen


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
