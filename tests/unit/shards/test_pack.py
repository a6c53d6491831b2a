"""The packer: same bytes, right pixels, safe to kill, one line for every bad input."""

from __future__ import annotations

import gzip
import io
import json
import re
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards import pack as packer
from shards.cli import InputError
from shards.index import Index
from shards.pack import Settings, main, pack, prepare_image, split_of
from shards.sources import natural

Command = Callable[..., tuple[int, str, str]]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys_of(folder: Path, split: str) -> list[str]:
    table = Index.load(folder).split(split)
    return [table.key(number) for number in range(len(table))]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


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

        make_source(source, more)
        pack(source, folder / "more", tiny(shard_size=shard_size))
        for split in ("train", "val"):
            assert set(keys_of(folder / "a", split)) <= set(keys_of(folder / "more", split))
            assert keys_of(folder / "more", split) == sorted(keys_of(folder / "more", split), key=natural)


def test_same_bytes_for_any_jobs_and_layout(make_source, tiny, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(packer, "CHUNK", 3)  # several chunks a shard
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


def test_stock_readers_agree(packed: Path, expected_labels) -> None:
    import webdataset

    index = Index.load(packed)
    shards = [shard.name for split in index.splits.values() for shard in split.shards]
    seen = {}
    for name in shards:
        with tarfile.open(packed / name) as archive:
            members = archive.getmembers()
            for member in members:
                file = archive.extractfile(member)
                assert file is not None
                seen[member.name] = file.read()
            assert {(m.mtime, m.uname, m.mode, m.uid) for m in members} == {(0, "diffcore", 0o644, 0)}
    assert len(seen) == 80

    stock = webdataset.WebDataset([str(packed / name) for name in shards], shardshuffle=False)
    count = 0
    for sample in stock.decode("rgb8"):
        key = sample["__key__"]
        assert sample["json"] == expected_labels(key) == json.loads(seen[f"{key}.json"])
        assert sample["png"].shape == (4, 4, 3)
        assert np.array_equal(sample["png"], pixels_of(seen[f"{key}.png"]))
        count += 1
    assert count == 40


# Pixels.


def test_alpha_over_white_equals_compositing_first() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (60, 70, 4), np.uint8)
    pixels = np.asarray(Image.fromarray(pixels).resize((70, 60), box=(0, 0, 10, 10)))  # smooth, as artwork is
    ours = pixels_of(prepare_image(png(pixels), "x", crop=48, size=8))
    image = Image.fromarray(pixels)
    white = Image.new("RGBA", image.size, "white")
    # Compositing over a constant and linear resampling commute, up to rounding to 8 bits.
    first = Image.alpha_composite(white, image).convert("RGB").crop((11, 6, 59, 54))
    reference = np.asarray(first.resize((8, 8), Image.Resampling.BICUBIC))
    assert np.abs(ours.astype(int) - reference).max() <= 2


def test_half_transparent_pixel() -> None:
    pixels = np.full((8, 8, 4), (200, 0, 100, 128), np.uint8)
    assert (
        np.abs(pixels_of(prepare_image(png(pixels), "x", crop=8, size=8))[0, 0] - [227, 127, 177.0]).max()
        <= 1
    )


def test_no_dark_fringe() -> None:
    """Transparent pixels are black in the files; none of that black may bleed into the edges."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, 13:] = (255, 0, 0, 255)
    packed_pixels = pixels_of(prepare_image(png(pixels), "x", crop=32, size=8))
    assert packed_pixels[..., 0].min() >= 254  # from white to red, red stays full
    assert packed_pixels[0, 0].tolist() == [255, 255, 255]
    assert packed_pixels[0, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
def test_other_png_modes(mode: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "white").convert(mode).save(stream, "PNG")
    assert (pixels_of(prepare_image(stream.getvalue(), "x", crop=8, size=4)) == 255).all()


# Archives.


def archive_of(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix == ".tgz" else "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def files_of(source: Path) -> list[tuple[str, bytes]]:
    return [(f"set/{path.name}", path.read_bytes()) for path in sorted(source.iterdir())]


def members_of(folder: Path, split: str) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    for shard in Index.load(folder).split(split).shards:
        with tarfile.open(folder / shard.name) as archive:
            found |= {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
    return found


@pytest.mark.parametrize("name", ["set.tgz", "set.tar", "set.tar.gz"])
@pytest.mark.parametrize("apart", [False, True])
def test_archive(make_source, tiny, tmp_path: Path, name: str, apart: bool) -> None:
    source = make_source(tmp_path / "source", range(12))
    files = files_of(source)
    if apart:
        files.sort(key=lambda file: file[0].endswith(".csv"))
    archive = archive_of(tmp_path / name, [("set/render.json", b"{}"), ("set/._cs1.png", b"junk"), *files])
    pack(archive, tmp_path / "out", tiny(), jobs=1)
    pack(source, tmp_path / "folder", tiny(), jobs=1)
    a, b = Index.load(tmp_path / "out"), Index.load(tmp_path / "folder")
    for split in ("train", "val"):
        assert sorted(keys_of(a.folder, split)) == sorted(keys_of(b.folder, split))
        assert members_of(a.folder, split) == members_of(b.folder, split)
    assert pack(archive, tmp_path / "out", tiny()).complete_before


def test_bad_archives(make_source, tmp_path: Path, command: Command) -> None:
    files = files_of(make_source(tmp_path / "source", range(3)))
    whole = archive_of(tmp_path / "whole.tgz", files).read_bytes()
    plain = gzip.decompress(whole)
    link = tarfile.TarInfo("cs9.png")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    device = tarfile.TarInfo("cs9.png")
    device.type = tarfile.CHRTYPE
    pending = archive_of(tmp_path / "x.tar", files[:-1]).read_bytes()
    # (file name, bytes, what is told)
    cases: list[tuple[str, bytes, str]] = [
        ("cut.tgz", whole[:-20], "truncated or damaged archive"),
        ("cut.tar", plain[: len(plain) // 2], "truncated or damaged|ends inside"),
        ("boundary.tar", plain[: tar_end(plain)], "truncated or damaged archive"),
        ("flip.tgz", whole[:-8] + b"\0\0\0\0" + whole[-4:], "truncated or damaged archive"),
        ("header.tar", flipped_header(plain), "truncated or damaged archive"),
        ("empty.tar", b"", "truncated or damaged archive"),
        ("junk.tgz", b"junk" * 300, "truncated or damaged archive"),
        ("nothing.tar", archive_of(tmp_path / "y.tar", []).read_bytes(), "no csX.png and csX.csv"),
        ("half.tar", pending, r"cs2\.csv: has no \.png"),
        ("up.tar", archive_of(tmp_path / "y.tar", [("../cs1.png", b"1")]).read_bytes(), "leads out"),
        ("root.tar", archive_of(tmp_path / "y.tar", [("/cs1.png", b"1")]).read_bytes(), "leads out"),
        ("twice.tar", archive_of(tmp_path / "y.tar", files + files).read_bytes(), "appears twice"),
        ("link.tar", link.tobuf() + bytes(1024), "a link or device"),
        ("device.tar", device.tobuf() + bytes(1024), "a link or device"),
    ]
    for name, data, told in cases:
        (tmp_path / name).write_bytes(data)
        code, out, err = command(main, tmp_path / name, "--out", tmp_path / "out", *TINY)
        assert (code, out, err.count("\n")) == (2, "", 1), (name, err)
        assert re.search(told, err) and name in err, (name, err)
        assert not (tmp_path / "out").exists(), name


def tar_end(plain: bytes) -> int:
    """Where the last member's header begins: cut there, every member before it is whole."""
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        return archive.getmembers()[-1].offset


def flipped_header(plain: bytes) -> bytes:
    end = tar_end(plain)
    return plain[:end] + bytes([plain[end] ^ 1]) + plain[end + 1 :]


# Bad input and settings.

TINY = ["--size", "4", "--crop", "8", "--jobs", "1"]


def bomb() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 6_000, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (12, 12)).save(stream, "JPEG")
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
    "jpeg": (lambda d: (d / "cs3.png").write_bytes(jpeg()), r"cs3\.png: not a PNG"),
    "bomb": (lambda d: (d / "cs3.png").write_bytes(bomb()), r"cs3\.png: 20000 x 6000 pixels; at most"),
    "16 bits": (lambda d: (d / "cs3.png").write_bytes(deep()), r"cs3\.png: pixel format"),
    "too small": (
        lambda d: (d / "cs3.png").write_bytes(png(np.zeros((7, 30, 4), np.uint8))),
        r"30 x 7 .*--crop 8",
    ),
    "dotted name": (lambda d: (d / "cs3.png").rename(d / "cs.3.png"), r"cs\.3\.png: its name is no key"),
    "folder as png": (lambda d: [(d / "cs3.png").unlink(), (d / "cs3.png").mkdir()], "not a plain file"),
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
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.search(told, err), err
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
    ],
)
def test_bad_settings(make_source, tmp_path: Path, command: Command, flags: list[object]) -> None:
    source = make_source(tmp_path / "source", range(2))
    code, _, err = command(main, source, "--out", tmp_path / "out", *TINY, *flags)
    assert code == 2 and err.count("\n") == 1 and str(flags[0]) in err and "allowed" in err
    assert not (tmp_path / "out").exists()


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


# Going on, and refusing to.


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
    assert packer.JOURNAL in names and "index.json" not in names
    assert not [name for name in names if name.endswith(".tmp")]
    kept = [name for name in names if name.endswith(".tar")]
    assert len(kept) >= 3

    # A shard whose bytes changed meanwhile is packed again; a half line of the journal is passed over.
    damaged = out / sorted(kept)[0]
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with (out / packer.JOURNAL).open("ab") as journal:
        journal.write(b'{"name": "train-')
    (out / ".train-000099.tar.tmp").touch()
    summary = pack(source, out, chosen)
    assert summary.written <= 100 - 10 * (len(kept) - 1)
    assert contents(out) == contents(tmp_path / "whole")


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
    (source / "cs3.csv").write_text((source / "cs4.csv").read_text())
    code, _, err = command(main, source, "--out", out, *TINY)
    assert code == 2 and "source content differs" in err
    assert contents(out) == before


def test_begun_folder_with_other_settings(make_source, tiny, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(40))
    with pytest.raises(StoppedError):
        pack(source, tmp_path / "out", tiny(), report=stop_after(30))
    with pytest.raises(InputError, match="size is 4 there, 5 asked"):
        pack(source, tmp_path / "out", tiny(size=5))
    with pytest.raises(InputError, match="source is 'source' there, 'other' asked"):
        pack(make_source(tmp_path / "other", range(40)), tmp_path / "out", tiny())


def test_two_packs_at_once(make_source, tiny, tmp_path: Path) -> None:
    source = make_source(tmp_path / "source", range(40))
    refused = []

    def report(done: int, total: int | None) -> None:
        with pytest.raises(InputError, match=r"another shards\.pack is writing here"):
            pack(source, tmp_path / "out", tiny())
        refused.append(done)

    pack(source, tmp_path / "out", tiny(), report=report)
    assert refused and len(Index.load(tmp_path / "out").splits) == 2


def test_killed_outright(make_source, tiny, tmp_path: Path) -> None:
    """kill -9 on the parent: the workers end too, and the same command goes on to the same bytes."""
    source = make_source(tmp_path / "source", range(600))
    out = tmp_path / "out"
    command_line = [sys.executable, "-m", "shards.pack", source, "--out", out, "--size", "4", "--crop", "8"]
    command_line += ["--shard-size", "20", "--jobs", "2"]
    process = subprocess.Popen(command_line, stderr=subprocess.PIPE)
    journal = out / packer.JOURNAL
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.002)
    process.kill()
    # The workers hold the other end of stderr: communicate returns when the last one has gone.
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGKILL
    assert not (out / "index.json").exists()

    chosen = Settings(size=4, crop=8, shard_size=20)
    assert pack(source, out, chosen).written < 600
    pack(source, tmp_path / "whole", chosen)
    assert contents(out) == contents(tmp_path / "whole")


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
    assert done.stderr == f"error: {tmp_path / 'out'}: File too large\n"
    assert not (tmp_path / "out").exists()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_png_is_told_or_packed(data: st.DataObject) -> None:
    whole = MUTABLE
    place = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(max_size=8))
    cut = data.draw(st.integers(0, 12))
    try:
        found = prepare_image(whole[:place] + noise + whole[place + cut :], "x.png", crop=8, size=4)
    except InputError as error:
        assert "x.png" in str(error)
        return
    assert pixels_of(found).shape == (4, 4, 3)


MUTABLE = png(np.random.default_rng(0).integers(0, 256, (12, 12, 4), np.uint8))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_archive_is_told_or_read(data: st.DataObject) -> None:
    from shards.sources import CartoonArchive

    whole = MUTABLE_TAR
    place = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(max_size=8))
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "x.tar"
        path.write_bytes(whole[:place] + noise + whole[place + len(noise) :])
        try:
            keys = [sample.key for sample in CartoonArchive(path).samples()]
        except InputError as error:
            assert "x.tar" in str(error)
            return
        assert keys


def _mutable_tar() -> bytes:
    from shards.attributes import CARTOON_SET, format_csv

    stream = io.BytesIO()
    table = format_csv({a.name: 0 for a in CARTOON_SET}).encode()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, payload in (("a" * 120 + "/cs1.png", MUTABLE), ("a" * 120 + "/cs1.csv", table)):
            info = tarfile.TarInfo(name)
            info.size = len(payload)
            info.pax_headers = {"comment": "é"}
            archive.addfile(info, io.BytesIO(payload))
    return stream.getvalue()


MUTABLE_TAR = _mutable_tar()
