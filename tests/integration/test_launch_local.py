"""The job as a whole through submitit's local executor: submit.py, supervisors, training, jobs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import REPOSITORY, run


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    return tmp_path


def test_a_local_job_trains_to_its_end_and_goes_on(small: Path, home: Path) -> None:
    submit = [sys.executable, str(REPOSITORY / "launch" / "submit.py"), "--config", str(small)]
    timed = home / "timed.yaml"
    timed.write_text("{name: local, gpus: {form: none}, preflight: {run_gb: 0, scratch_gb: 0}}\n")
    size = ["--tasks-per-node", "2", "--follow"]
    first = run([*submit, *size, "--cluster", str(timed)], cwd=home)
    assert first.code == 0, first.out + first.err
    assert "all-reduce over 2 ranks" in first.out
    assert "2 ranks meet at 127.0.0.1" in first.out
    assert (home / "run" / "checkpoints" / "step-00000004" / "COMPLETE").exists()

    again = run([*submit, *size, "--cluster", "local", "--train.steps", "6"], cwd=home)
    assert again.code == 0, again.out + again.err
    assert (home / "run" / "checkpoints" / "step-00000006" / "COMPLETE").exists()
    # The second submission ran code of its own, from its own snapshot.
    assert (home / "run" / "job" / "002" / "code" / "diffcore" / "train.py").exists()
    events = [json.loads(line) for line in (home / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["code"] for e in events if e["event"] == "ended"] == [0, 0]
    assert [e["attempt"] for e in events if e["event"] == "started"] == [0, 1]

    jobs = run([sys.executable, "-m", "launch.jobs", "list"], cwd=REPOSITORY)
    assert "COMPLETED" in jobs.out, jobs.out + jobs.err


def test_bad_input_on_the_node_is_the_jobs_exit_code(small: Path, home: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "launch" / "submit.py"), "--config", str(small), "--follow"]
    # Seven levels halve 16 pixels too often, which only the network's builder knows.
    wrong = ["--tasks-per-node", "1", "--model.channels", "[8, 8, 8, 8, 8, 8, 8]"]
    done = run([*command, "--cluster", "local", *wrong], cwd=home)
    assert done.code == 2, done.out + done.err
