"""Disks whose mount has no flock: runs train, resume, and exclude each other by a lease file."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from diffcore.runs import checkpoint
from tests.integration.conftest import TRAIN, Train
from tests.support import small_set
from tests.support.faults.kit import Faults, fail, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"LEFT OUT: {why_not()}; make system-test")


def weights(run: Path) -> list[bytes]:
    """The newest checkpoint's tensors."""
    folder, _ = checkpoint.newest(run)
    assert folder is not None
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


def under(patch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        patch.setenv(name, value)


def test_two_ranks_train_and_resume_without_flock(
    train: Train, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What they learn is what they learn elsewhere, bit for bit."""
    train("--run", str(tmp_path / "whole"), "--train.steps", "4", ranks=2)
    run = tmp_path / "run"
    under(monkeypatch, Faults(tmp_path).env(fail("lock", errno.ENOSYS)))
    first = train("--train.steps", "2", ranks=2)
    resumed = train("--train.steps", "4", ranks=2)
    for done in (first, resumed):
        line = f"{run / '.lock'}: no flock (Function not implemented): a lease file holds the place; "
        assert done.err.count(line) == 1 and "Traceback" not in done.err
    assert "from step 2" in resumed.out and weights(run) == weights(tmp_path / "whole")


def test_a_second_training_is_refused_until_the_first_is_killed(
    train: Train, small: Path, tmp_path: Path
) -> None:
    """The first has no flock, the second has it: nodes may have mounted one disk in two ways."""
    run = tmp_path / "run"
    env = os.environ | {"OMP_NUM_THREADS": "1"} | Faults(tmp_path).env(fail("lock", errno.EOPNOTSUPP))
    command = [sys.executable, str(TRAIN), "--config", str(small), "--train.steps", "100000"]
    with (tmp_path / "log").open("w") as log:
        first = subprocess.Popen(command, env=env, cwd=tmp_path, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while not (run / "run.json").exists():
            assert first.poll() is None and time.monotonic() < until, (tmp_path / "log").read_text()
            time.sleep(0.05)
        second = train("--train.steps", "1", check=False)
        assert (second.code, first.poll()) == (2, None)
        place = f"process {first.pid} on {os.uname().nodename}"
        assert second.err.splitlines()[-1] == f"error: run: another process is training in {run} ({place})"
    finally:
        first.kill()
        first.wait()
    train("--train.steps", "2")


def test_shards_are_packed_without_flock(tmp_path: Path) -> None:
    """The same bytes, and nothing of the lease stays."""
    source = small_set.pictures(tmp_path / "source", 12, 8)
    command = [sys.executable, "-m", "shards.pack", str(source), "--size", "8", "--crop", "8", "--jobs", "1"]
    found = []
    for name, env in (("with", {}), ("without", Faults(tmp_path).env(fail("lock", errno.ENOSYS)))):
        out = tmp_path / name
        done = subprocess.run(
            [*command, "--out", str(out)], env=os.environ | env, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert ("a lease file holds the place" in done.stderr) == (name == "without")
        found.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert found[0] == found[1]
