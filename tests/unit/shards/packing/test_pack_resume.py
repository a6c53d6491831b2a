"""A pack that was stopped goes on to the same bytes, and no other folder is touched."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import numpy as np
import pytest

from diffbase.cli import InputError
from shards.pack import main
from shards.packing.journal import JOURNAL
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.table import Index
from tests.support.tiny_set import TINY, Command, contents, png


class StoppedError(Exception):
    pass


def stop_after(samples: int) -> Callable[[int, int | None], None]:
    def report(done: int, total: int | None) -> None:
        if done >= samples:
            raise StoppedError

    return report


@pytest.mark.parametrize("jobs", [1, 2])
def test_goes_on_after_a_stop(make_source, tiny, tmp_path: Path, jobs: int) -> None:
    source = make_source(tmp_path / "source", range(100))
    chosen = tiny(shard_size=10)
    pack(source, tmp_path / "whole", chosen)
    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        pack(source, out, chosen, jobs=jobs, report=stop_after(45))
    names = {path.name for path in out.iterdir()}
    assert JOURNAL in names and "index.json" not in names
    assert not [name for name in names if name.endswith(".tmp")]
    kept = [name for name in names if name.endswith(".tar")]
    assert len(kept) >= 3

    # A shard whose bytes changed meanwhile is packed again; a half line of the journal is passed over.
    damaged = out / sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with (out / JOURNAL).open("ab") as journal:
        journal.write(b'{"name": "train-')
    (out / ".train-000099.tar.tmp").touch()
    with pytest.raises(StoppedError):  # the journal must be whole again for a third attempt
        pack(source, out, chosen, report=stop_after(70))
    told: list[tuple[int, int | None]] = []
    summary = pack(source, out, chosen, report=lambda *now: told.append(now))
    assert summary.written <= 100 - 10 * (len(kept) - 1)
    assert told[-1] == (100, 100)
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.parametrize("half", ["png", "csv"])
def test_changed_sample_is_packed_again(make_source, tiny, tmp_path: Path, half: str) -> None:
    source = make_source(tmp_path / "source", range(40))
    with pytest.raises(StoppedError):
        pack(source, tmp_path / "out", tiny(), report=stop_after(35))
    # Flat grey is smaller than noise; an image of as many bytes would not be noticed.
    other = {"png": png(np.full((12, 12), 99, np.uint8)), "csv": (source / "cs4.csv").read_bytes()}
    (source / f"cs3.{half}").write_bytes(other[half])
    pack(source, tmp_path / "out", tiny())
    pack(source, tmp_path / "whole", tiny())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_exchanged_image_in_an_archive_is_noticed(make_source, tiny, tmp_path: Path) -> None:
    """Another image of as many bytes: an archive's samples are recognised by their content."""
    source = make_source(tmp_path / "source", range(40))
    archive = tmp_path / "set.tar"

    def write(swapped: dict[str, str]) -> None:
        with tarfile.open(archive, "w") as tar:
            for number in range(40):
                for end in ("png", "csv"):
                    name = f"cs{number}.{end}"
                    tar.add(source / swapped.get(name, name), name)

    for key, shade in (("cs3", 7), ("cs4", 8)):
        (source / f"{key}.png").write_bytes(png(np.full((12, 12), shade, np.uint8)))
    assert (source / "cs3.png").stat().st_size == (source / "cs4.png").stat().st_size
    write({})
    with pytest.raises(StoppedError):
        pack(archive, tmp_path / "out", tiny(), report=stop_after(35))
    write({"cs3.png": "cs4.png", "cs4.png": "cs3.png"})
    pack(archive, tmp_path / "out", tiny())
    pack(archive, tmp_path / "whole", tiny())
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_goes_on_after_the_bad_file_is_mended(make_source, tiny, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(100))
    chosen = tiny(shard_size=10)
    pack(source, tmp_path / "whole", chosen)
    good = (source / "cs80.png").read_bytes()
    (source / "cs80.png").write_bytes(good[:100])
    with pytest.raises(InputError, match=r"cs80\.png"):
        pack(source, tmp_path / "out", chosen)
    assert not (tmp_path / "out" / "index.json").exists()
    assert not list((tmp_path / "out").glob(".*.tmp"))
    (source / "cs80.png").write_bytes(good)
    assert pack(source, tmp_path / "out", chosen).written < 50
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_shards_of_a_larger_attempt_go(make_source, tiny, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(60))
    with pytest.raises(StoppedError):
        pack(source, tmp_path / "out", tiny(), report=stop_after(55))
    for number in range(20, 60):
        (source / f"cs{number}.png").unlink()
        (source / f"cs{number}.csv").unlink()
    pack(source, tmp_path / "out", tiny())
    pack(source, tmp_path / "small", tiny())
    assert contents(tmp_path / "out") == contents(tmp_path / "small")


def test_finished_folder(make_source, tmp_path: Path, command: Command) -> None:
    source = make_source(tmp_path / "source", range(20))
    out = tmp_path / "out"
    assert command(main, source, "--out", out, *TINY)[0] == 0
    before = contents(out)
    code, told, err = command(main, source, "--out", out, *TINY)
    assert code == 0 and "complete already" in told and not err
    source.rename(tmp_path / "moved")  # moving the source does not change it
    source = tmp_path / "moved"
    assert "complete already" in command(main, source, "--out", out, *TINY)[1]

    for flags, told in ((["--size", 5], "size is 4 there, 5 asked"), (["--val", 0.5], "val is 0.02 there")):
        code, _, err = command(main, source, "--out", out, *TINY, *flags)
        assert code == 2 and told in err and err.count("\n") == 1
    whole = (source / "cs3.csv").read_text()
    (source / "cs3.csv").write_text((source / "cs4.csv").read_text())
    code, _, err = command(main, source, "--out", out, *TINY)
    assert code == 2 and "source content differs" in err
    assert contents(out) == before

    (source / "cs3.csv").write_text(whole)
    (out / "train-000000.tar").write_bytes(before["train-000000.tar"][:-1])
    code, _, err = command(main, source, "--out", out, *TINY)
    assert code == 2 and "train-000000.tar: missing or damaged" in err


def test_begun_folder_with_other_settings(make_source, tiny, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(40))
    with pytest.raises(StoppedError):
        pack(source, tmp_path / "out", tiny(), report=stop_after(30))
    before = contents(tmp_path / "out")
    with pytest.raises(InputError, match="size is 4 there, 5 asked"):
        pack(source, tmp_path / "out", tiny(size=5))
    with pytest.raises(InputError, match="source is 'source' there, 'other' asked"):
        pack(make_source(tmp_path / "other", range(40)), tmp_path / "out", tiny())
    assert contents(tmp_path / "out") == before


def test_two_packs_at_once(make_source, tiny, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(40))
    refused = []

    def report(done: int, total: int | None) -> None:
        with pytest.raises(InputError, match=r"another shards\.pack is writing here"):
            pack(source, tmp_path / "out", tiny())
        refused.append(done)

    pack(source, tmp_path / "out", tiny(), report=report)
    assert refused and len(Index.load(tmp_path / "out").splits) == 2


def test_pack_that_ends_just_before_the_lock(make_source, tiny, tmp_path: Path, monkeypatch) -> None:
    """The journal that was opened is then no file any more: a lock on it would protect nothing."""
    source = make_source(tmp_path / "source", range(9))
    flock = fcntl.flock

    def late(file: IO[bytes], flags: int) -> None:
        (tmp_path / "out" / JOURNAL).unlink()
        flock(file, flags)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(InputError, match=r"another shards\.pack has just ended here"):
        pack(source, tmp_path / "out", tiny())


@pytest.mark.parametrize(
    "text", [b"junk\n", b"[]\n", b"{}\njunk\n", b"{}\n[]\n", b'{}\n{"name": 3}\n', b"{}\n{}\n"]
)
def test_not_a_journal(make_source, tiny, tmp_path: Path, text: bytes) -> None:
    source = make_source(tmp_path / "source", range(9))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(text)
    with pytest.raises(InputError, match="not a journal of shards"):
        pack(source, tmp_path / "out", tiny())
    assert contents(tmp_path / "out") == {JOURNAL: text}


def test_journal_names_no_other_files(make_source, tiny, tmp_path: Path) -> None:
    """Shards of the journal that the source no longer gives are removed; nothing else ever is."""
    source = make_source(tmp_path / "source", range(40))
    with pytest.raises(StoppedError):
        pack(source, tmp_path / "out", tiny(), report=stop_after(30))
    (tmp_path / "thesis.txt").touch()
    with (tmp_path / "out" / JOURNAL).open("ab") as journal:
        journal.write(b'{"name": "../thesis.txt", "sha256": "", "samples": ""}\n')
    pack(source, tmp_path / "out", tiny())
    assert (tmp_path / "thesis.txt").exists()


def started(source: Path, out: Path) -> subprocess.Popen[bytes]:
    """A pack with two workers in a session of its own, once it has finished two shards."""
    command_line = [sys.executable, "-m", "shards.pack", source, "--out", out, "--size", "4", "--crop", "8"]
    command_line += ["--shard-size", "20", "--jobs", "2"]
    process = subprocess.Popen(
        command_line,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A test run in a shell's background inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    journal = out / JOURNAL
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    return process


def test_interrupted(make_source, tmp_path: Path) -> None:
    """Ctrl-C reaches the workers too: the parent alone answers it, in one line."""
    source = make_source(tmp_path / "source", range(600))
    process = started(source, tmp_path / "out")
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"interrupted\n")
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.slow
def test_killed_outright(make_source, tmp_path: Path) -> None:
    """kill -9 on the parent: the workers end too, and the same command goes on to the same bytes."""
    source = make_source(tmp_path / "source", range(600))
    out = tmp_path / "out"
    process = started(source, out)
    process.kill()
    # The workers hold the other end of stderr: communicate returns when the last one has gone.
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "index.json").exists()

    chosen = Settings(size=4, crop=8, shard_size=20)
    assert pack(source, out, chosen).written < 600
    pack(source, tmp_path / "whole", chosen)
    assert contents(out) == contents(tmp_path / "whole")
