"""A run whose log is lost, whose disk is full, and whose own records are damaged: real processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffbase import exits, ledger
from diffcore.runs import checkpoint, metrics
from diffcore.runs.stored.record import shard_name
from tests.integration.conftest import TRAIN, Train
from tests.support.faults.kit import can_mount, tiny_disk


def events(run: Path) -> list[str]:
    return [e["event"] for e in ledger.events(run)]


@pytest.mark.parametrize("redirect", ["| head -1", "2>&1 | true", ">&- 2>&-", "> /dev/full 2> /dev/full"])
def test_training_goes_on_without_its_log(small: Path, redirect: str) -> None:
    line = f"{sys.executable} {TRAIN} --config {small} {redirect}; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", line], cwd=small.parent, capture_output=True, text=True, timeout=180)
    assert done.returncode == exits.DONE, done.stderr[-2000:]
    run = small.parent / "run"
    assert [checkpoint.step_of(f) for f in checkpoint.complete(run)][-1] == 4 and events(run)[-1] == "done"
    lost = [e["why"] for e in ledger.events(run) if e["event"] == "log_lost"]
    assert len(lost) == len(set(lost)) and bool(lost) == (">&-" not in redirect)


@pytest.fixture
def small_disk(small: Path) -> Iterator[Path]:
    """The run folder is a disk of 1 MiB, which holds no checkpoint."""
    if not can_mount():
        pytest.skip("may not mount")
    with tiny_disk(small.parent / "run", 1) as disk:
        yield disk


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_checkpoint_that_does_not_fit_is_told_tried_again_and_the_end(
    train: Train, small_disk: Path, ranks: int
) -> None:
    finished = train("--train.steps", "9", ranks=ranks, check=False)
    assert finished.code == exits.RETRYABLE
    for step, row in ((2, 1), (4, 2), (6, 3)):
        assert f"checkpoint of step {step} not written ({row} in a row): " in finished.err
    assert "error: rank 0: " in finished.err and "Traceback" not in finished.err
    assert events(small_disk).count("save_failed") == 3
    assert not checkpoint.complete(small_disk) and not list((small_disk / "checkpoints").iterdir())
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    train(ranks=ranks)
    assert events(small_disk)[-1] == "done"


def test_logs_that_cannot_be_written_are_told_once(train: Train, small: Path, small_disk: Path) -> None:
    """The run folder's disk becomes full while the checkpoints are on one with room."""
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    train("--train.steps", "2")
    shutil.copytree(small_disk / "checkpoints", small.parent / "room")
    shutil.rmtree(small_disk / "checkpoints")
    (small_disk / "checkpoints").symlink_to(small.parent / "room")
    command = [sys.executable, str(TRAIN), "--config", str(small), "--train.steps", "120"]
    with (small.parent / "log").open("w+") as log:
        training = subprocess.Popen([*command, "--train.checkpoint_every", "60"], stdout=log, stderr=log)
        try:
            until = time.monotonic() + 120
            while (ledger.heartbeat(small_disk) or {"step": 0})["step"] < 5 and time.monotonic() < until:
                time.sleep(0.05)
            with (small_disk / "ballast").open("wb", buffering=0) as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(4096))
            assert training.wait(120) == exits.DONE
        finally:
            training.kill()
    said = (small.parent / "log").read_text()
    assert "Traceback" not in said
    assert said.count("metrics.jsonl cannot be written (No space left on device); training goes on") == 1
    assert [checkpoint.step_of(folder) for folder in checkpoint.complete(small_disk)][-1] == 120
    steps = [line["step"] for line in metrics.read(small_disk)]
    # A line is lost or whole; a rewritten heartbeat may leave room for another one now and then.
    assert steps == sorted(set(steps)) and steps[:5] == [1, 2, 3, 4, 5] and len(steps) < 120


def test_whatever_the_umask_a_run_is_its_owners(train: Train, small: Path) -> None:
    (small.parent / "run").mkdir(mode=0o755)
    before = os.umask(0)
    try:
        train("--train.steps", "2")
        finished = train()  # into the folders that the first one made
    finally:
        os.umask(before)
    assert "from step 2" in finished.out
    others = {path: path.lstat().st_mode & 0o077 for path in (small.parent / "run").rglob("*")}
    assert others and not {path: mode for path, mode in others.items() if mode}


def test_a_bad_byte_blocks_no_resume(train: Train, small: Path) -> None:
    train("--train.steps", "2")
    run = small.parent / "run"
    for name in ("metrics.jsonl", "events.jsonl", "heartbeat.json"):
        with (run / name).open("ab") as file:
            file.write(b"\xff\n" + b'{"step": "x", "event": 7}\n')
    before = (run / "metrics.jsonl").read_bytes()
    (run / "checkpoints" / "best.json").write_text('{"step": Infinity, "metric": "x", "value": 1}')
    newest = checkpoint.complete(run)[-1]
    shutil.copytree(newest, newest.with_name(newest.name + "-backup"))
    (newest / "shard-00007-of-00008.safetensors").write_bytes(b"foreign")
    finished = train()
    assert "from step 2" in finished.out and "2 lines of " in finished.out
    [aside] = run.glob("metrics.jsonl.damaged-*")
    assert aside.read_bytes() == before
    steps = [json.loads(line)["step"] for line in (run / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]
    assert list((run / "checkpoints").glob("best.json.damaged-*"))
    assert "best.json" in finished.out and "damaged" in events(run)
    assert (newest.parent / (newest.name + "-backup")).is_dir()


def test_a_damaged_checkpoint_is_named_and_the_older_one_taken(train: Train, small: Path) -> None:
    train()
    run = small.parent / "run"
    older, newer = checkpoint.complete(run)
    state = newer / "state.json"
    state.write_text(state.read_text().replace('"step": 4', '"step": 4, "x": 1'))
    finished = train()
    assert "from step 2" in finished.out and "checkpoint step-00000004 skipped: state.json" in finished.out
    for folder in (older, newer):
        (folder / "state.json").write_text("{}")
    finished = train("--train.steps", "6", check=False)
    assert finished.code == exits.BAD_INPUT and finished.err.count("\n") == 1
    assert "state.json" in finished.err and "move the folder away to begin anew" in finished.err
    assert older.is_dir() and newer.is_dir()


def test_what_any_rank_finds_damaged_is_not_trained_on(train: Train, small: Path) -> None:
    train(ranks=2)
    run = small.parent / "run"
    older, newer = checkpoint.complete(run)
    shard = newer / shard_name(0, len(list(newer.glob("shard-*"))))
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # of the last rank's part: not rank 0, which looks for the newest, reads it
    shard.write_bytes(data)
    finished = train("--train.steps", "6", ranks=2)
    assert "from step 2" in finished.out and f"checkpoint {newer.name} skipped: {shard.name}" in finished.out
    assert "damaged" in events(run) and checkpoint.check(newer) is None  # made again
    assert older.is_dir() or checkpoint.complete(run)[-1].name == "step-00000006"


def test_a_link_in_the_ledgers_place_is_one_line(train: Train, small: Path) -> None:
    run = small.parent / "run"
    run.mkdir()
    (small.parent / "precious").write_text("mine")
    (run / "events.jsonl").symlink_to(small.parent / "precious")
    finished = train(check=False)
    assert finished.code == exits.BAD_INPUT and (small.parent / "precious").read_text() == "mine"
    assert "events.jsonl: is a link, which is not written through" in finished.err
    assert finished.err.count("\n") == 1


def test_a_wrong_number_of_the_attempt_is_one_line(
    train: Train, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ledger.ATTEMPT, "abc")
    finished = train(check=False)
    assert finished.code == exits.BAD_INPUT and not (small.parent / "run").exists()
    said = "'abc' is no number of an attempt; allowed are whole numbers from 0"
    assert finished.err == f"error: DIFFCORE_ATTEMPT: {said}\n"
