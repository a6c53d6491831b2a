"""The environment of a job's steps inside an allocation."""

from __future__ import annotations

import pytest

from launch.hand_over.allocation import environment


@pytest.mark.parametrize(
    ("step", "overlap"),
    [("0", True), ("3", True), (None, False), (str(0xFFFFFFFA), False), (str(0xFFFFFFFB), False)],
)
def test_steps_share_what_the_shells_own_step_holds(step: str | None, overlap: bool) -> None:
    """salloc's interactive step (0xfffffffa) and a batch script (0xfffffffb) hold nothing back."""
    given = {"SLURM_JOB_ID": "7", "PATH": "/bin"} | ({} if step is None else {"SLURM_STEP_ID": step})
    kept = given if not overlap else given | {"SLURM_OVERLAP": "1"}
    kept = {name: value for name, value in kept.items() if name != "SLURM_STEP_ID"}
    layout = {
        "SLURM_NTASKS": "1",
        "SLURM_CPU_BIND_LIST": "0x1",
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_NPROCS": "1",
    }
    assert environment(given | layout) == kept
