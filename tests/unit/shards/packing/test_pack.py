"""The packer: same bytes, stable splits, one line for every bad input."""

from __future__ import annotations

import io
import re
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.pack import main
from shards.packing import bad, plan
from shards.packing.journal import JOURNAL
from shards.packing.packer import pack
from shards.packing.plan import split_of
from shards.sources import natural
from shards.table import Index
from tests.support.tiny_set import TINY, Command, contents, keys_of, png

# What is packed.


@settings(max_examples=8, deadline=None)
@given(
    numbers=st.sets(st.integers(0, 500), min_size=1, max_size=25),
    more=st.sets(st.integers(0, 500), max_size=25),
    shard_size=st.integers(1, 9),
)
def test_same_bytes_and_stable_splits(make_source, tiny, numbers, more, shard_size) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = make_source(folder / "source", numbers)
        for out in ("a", "b"):
            pack(source, folder / out, tiny(shard_size=shard_size))
        assert contents(folder / "a") == contents(folder / "b")
        assert sorted(keys_of(folder / "a", "train") + keys_of(folder / "a", "val")) == sorted(
            f"cs{number}" for number in numbers
        )

        for split in Index.load(folder / "a").splits.values():
            counts = [shard.count for shard in split.shards]
            assert all(count == shard_size for count in counts[:-1]) and counts[-1:] <= [shard_size]

        make_source(source, more)
        pack(source, folder / "more", tiny(shard_size=shard_size))
        for split in ("train", "val"):
            assert set(keys_of(folder / "a", split)) <= set(keys_of(folder / "more", split))
            assert keys_of(folder / "more", split) == sorted(keys_of(folder / "more", split), key=natural)


def test_same_bytes_for_any_jobs_and_layout(make_source, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "CHUNK", 3)  # several chunks a shard
    source = make_source(tmp_path / "flat" / "set", range(60))
    nested = make_source(tmp_path / "nested" / "set", range(60), nested=True)
    (source / "render.json").write_text("{}")
    pack(source, tmp_path / "one", tiny(shard_size=20), jobs=1)
    pack(source, tmp_path / "two", tiny(shard_size=20), jobs=2)
    pack(nested, tmp_path / "three", tiny(shard_size=20), jobs=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two") == contents(tmp_path / "three")


def test_split_share() -> None:
    share = sum(split_of(f"cs{n}", 0.1) == "val" for n in range(20_000)) / 20_000
    assert abs(share - 0.1) < 0.01
    assert {split_of(f"cs{n}", 0.0) for n in range(1000)} == {"train"}
    # Pinned: a changed hash would move samples of sets that are packed already.
    assert [n for n in range(60) if split_of(f"cs{n}", 0.1) == "val"] == [4, 19, 34, 37, 44, 58, 59]


def test_no_val(make_source, tiny, tmp_path: Path) -> None:
    pack(make_source(tmp_path / "source", range(9)), tmp_path / "out", tiny(val=0.0))
    assert len(Index.load(tmp_path / "out").split("train")) == 9
    assert not len(Index.load(tmp_path / "out").split("val"))


# Bad input and settings.


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 6_000, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def gif() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 12)).save(stream, "GIF")
    return stream.getvalue()


def deep() -> bytes:
    return png(np.zeros((12, 12), np.uint16))


BAD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no csv": (lambda d: (d / "cs3.csv").unlink(), r"cs3\.png: has no cs3\.csv"),
    "no png": (lambda d: (d / "cs3.png").unlink(), r"cs3\.csv: has no cs3\.png"),
    "wrong name": (
        lambda d: (d / "cs3.csv").write_text('"ear", 0, 2\n'),
        r"cs3\.csv, line 1: unknown attribute",
    ),
    "out of range": (
        lambda d: (d / "cs3.csv").write_text('"hair", 111, 111\n'),
        r"hair is 111; allowed: 0 to 110",
    ),
    "truncated": (
        lambda d: (d / "cs3.png").write_bytes((d / "cs3.png").read_bytes()[:200]),
        r"cs3\.png: trunc",
    ),
    "cut end": (lambda d: (d / "cs3.png").write_bytes((d / "cs3.png").read_bytes()[:-6]), r"cs3\.png: trunc"),
    "empty": (lambda d: (d / "cs3.png").write_bytes(b""), r"cs3\.png: an empty file"),
    "gif": (lambda d: (d / "cs3.png").write_bytes(gif()), r"cs3\.png: not a PNG"),
    "bomb": (lambda d: (d / "cs3.png").write_bytes(bomb()), r"cs3\.png: 20000 x 6000 pixels; at most"),
    "16 bits": (lambda d: (d / "cs3.png").write_bytes(deep()), r"cs3\.png: pixel format"),
    "too small": (
        lambda d: (d / "cs3.png").write_bytes(png(np.zeros((7, 30, 4), np.uint8))),
        r"30 x 7 .*--crop 8",
    ),
    "dotted name": (lambda d: (d / "cs3.png").rename(d / "cs.3.png"), r"cs\.3\.png: its name is no key"),
    "folder as png": (
        lambda d: [(d / "cs3.png").unlink(), (d / "cs3.png").mkdir()],
        r"cs3\.csv: has no cs3\.png",
    ),
    "emptied": (lambda d: [shutil.rmtree(d), d.mkdir()], "an empty folder"),
    "gone": (lambda d: shutil.rmtree(d), "no such file or folder"),
    "other files": (lambda d: [shutil.rmtree(d), d.mkdir(), (d / "a.txt").touch()], r"found a\.txt"),
}


@pytest.mark.parametrize("what", BAD_FILES)
def test_bad_input_is_one_line(make_source, tmp_path: Path, command: Command, what: str) -> None:
    spoil, told = BAD_FILES[what]
    source = make_source(tmp_path / "source", range(5))
    spoil(source)
    code, out, err = command(main, source, "--out", tmp_path / "deep" / "out", *TINY)
    assert (code, err.count("\n")) == (2, 1)
    assert out in ("", f"{source}: cartoonset, 18 labels of 217 variants in all, 5 samples\n")
    assert re.search(told, err), err
    out_folder = tmp_path / "deep" / "out"
    if bad.FILE in err:  # an image: the good ones are packed
        assert {bad.FILE, JOURNAL, "train-000000.tar"} <= contents(out_folder).keys()
        assert not (out_folder / "index.json").exists()
    else:
        assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--size", 0],
        ["--crop", -1],
        ["--shard-size", 0],
        ["--val", 1],
        ["--val", "nan"],
        ["--jobs", 0],
        ["--kind", "imagenet"],
        ["--image", "gif"],
    ],
)
def test_bad_settings(make_source, tmp_path: Path, command: Command, flags: list[object]) -> None:
    source = make_source(tmp_path / "source", range(2))
    code, _, err = command(main, source, "--out", tmp_path / "out", *TINY, *flags)
    assert code == 2 and err.count("\n") == 1 and str(flags[0]) in err and "allowed" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags", [["--size", "x"], ["--out"], ["--colour"], ["--jobs", "many"]], ids=lambda flags: flags[0]
)
def test_bad_flags_are_one_line(command: Command, flags: list[str]) -> None:
    code, out, err = command(main, "source", "--out", "out", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and flags[0] in err


def test_bad_out(make_source, tmp_path: Path, command: Command) -> None:
    source = make_source(tmp_path / "source", range(2))
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    for out, told in (
        (source, "inside the source"),
        (source / "out", "inside the source"),
        (tmp_path / "file", "not a folder"),
        (tmp_path / "full", "not empty"),
    ):
        code, _, err = command(main, source, "--out", out, *TINY)
        assert code == 2 and told in err and err.count("\n") == 1
    assert (tmp_path / "full" / "thesis.txt").exists()


def test_full_disk(make_source, tmp_path: Path) -> None:
    """A limit on the file size stands for a full disk: one line, exit code 2, nothing left."""
    source = make_source(tmp_path / "source", range(40))
    command_line = [sys.executable, "-m", "shards.pack", source, "--out", tmp_path / "out", *TINY]
    done = subprocess.run(
        command_line,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)),
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path / 'out' / 'train-000000.tar'}: File too large\n"
    assert not (tmp_path / "out").exists()
