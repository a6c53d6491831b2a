"""Disks and file servers that fail while a run reads: it learns from nothing else, and no data is blamed."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from diffcore.runs import checkpoint
from shards.table import Index
from shards.tables import write
from tests.integration.conftest import TRAIN
from tests.support import small_set
from tests.support.faults.kit import Faults, fail, few_descriptors, short, why_not

pytestmark = pytest.mark.skipif(bool(why_not()), reason=f"LEFT OUT: {why_not()}; make system-test")
SHARD = "train-000000.tar"
STEPS = ("--train.steps", "3", "--data.threads", "2", "--data.on_error", "replace")


def train(
    small: Path, run: Path, *rules: str, data: Path | None = None, **how: object
) -> subprocess.CompletedProcess[str]:
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    env |= Faults(small.parent).env(*rules) if rules else {}
    command = [sys.executable, str(TRAIN), "--config", str(small), "--run", str(run), *STEPS]
    if data is not None:
        command += ["--data.path", str(data)]
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        command, env=env, cwd="/", capture_output=True, text=True, timeout=120, **how
    )


def weights(run: Path) -> list[bytes]:
    """The newest checkpoint's tensors."""
    folder, _ = checkpoint.newest(run)
    assert folder is not None
    return [path.read_bytes() for path in sorted(folder.glob("shard-*.safetensors"))]


@pytest.fixture
def wanted(small: Path, tmp_path: Path) -> list[bytes]:
    """What the run learns where nothing fails."""
    done = train(small, tmp_path / "whole")
    assert done.returncode == 0, done.stderr
    return weights(tmp_path / "whole")


def test_faults_that_pass_change_nothing(small: Path, tmp_path: Path, wanted: list[bytes]) -> None:
    """A read that fails three times, an open that does, reads that give half, and nearly no descriptors."""
    rules = [
        fail("read", errno.EIO, SHARD, after=2, times=3),
        fail("open", errno.ESTALE, SHARD, times=2),
        fail("open", errno.EMFILE, "train-samples.npy", times=1),
        fail("open", errno.EIO, "index.json", times=1),
    ]
    for number, given in enumerate((rules, [short("read", SHARD)])):
        run = tmp_path / f"run-{number}"
        done = train(small, run, *given)
        assert done.returncode == 0, done.stderr
        assert "takes its place" not in done.stderr and weights(run) == wanted


def test_few_descriptors_change_nothing(small: Path, tmp_path: Path, wanted: list[bytes]) -> None:
    done = train(small, tmp_path / "run", preexec_fn=few_descriptors(80))
    assert done.returncode == 0, done.stderr
    assert weights(tmp_path / "run") == wanted


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same images with an index of version 4, whose rows are read as they are needed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "HELD_SAMPLES", -1)
        folder = small_set.packed(tmp_path_factory.mktemp("listed"))
    assert Index.load(folder).header.version == 4
    return folder


def test_faults_under_a_listed_index_that_pass_change_nothing(
    small: Path, listed: Path, tmp_path: Path, wanted: list[bytes]
) -> None:
    rules = [
        fail("read", errno.EIO, "train-samples.npy", after=1, times=3),
        fail("read", errno.ESTALE, "train-shards.npy", times=2),
        fail("open", errno.EIO, "train-blocks.npy", times=2),
        fail("open", errno.EMFILE, "train-samples.npy", times=1),
    ]
    for number, given in enumerate((rules, [short("read", "train-samples.npy")])):
        run = tmp_path / f"run-{number}"
        done = train(small, run, *given, data=listed)
        assert done.returncode == 0, done.stderr
        assert weights(run) == wanted


@pytest.mark.parametrize(("call", "number"), [("open", "EIO"), ("read", "EIO"), ("read", "ESTALE")])
def test_a_fault_under_a_listed_index_that_stays_is_retryable_and_named(
    small: Path, listed: Path, tmp_path: Path, call: str, number: str
) -> None:
    rule = fail(call, getattr(errno, number), "train-samples.npy", after=int(call == "read"))
    done = train(small, tmp_path / "run", rule, data=listed)
    assert done.returncode == 75, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "train-samples.npy" in line and f"({number}, 7 tries)" in line


@pytest.mark.parametrize("call", ["open", "read"])
def test_a_fault_that_stays_is_retryable_and_named(small: Path, tmp_path: Path, call: str) -> None:
    done = train(small, tmp_path / "run", fail(call, errno.EIO, SHARD))
    assert done.returncode == 75, done.stderr
    [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert SHARD in line and "(EIO, 7 tries)" in line and "takes its place" not in done.stderr
