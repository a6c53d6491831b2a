"""Other people's tars: what is refused in one line, the command, splits, and the check of an index."""

from __future__ import annotations

import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffbase.cli import InputError
from shards import index as index_command
from shards import pack as pack_command
from shards.foreign import checker
from shards.foreign.output import LOCK
from shards.header import FILE
from shards.packing.bad import OnBad
from shards.packing.packer import pack
from shards.read import ShardReader
from shards.sources.base import Asked
from shards.sources.tars import stream
from shards.table import Index
from tests.support.foreign_tars import (
    TINY,
    image,
    indexed,
    sample,
    write,
    write_numbers,
)
from tests.support.tiny_set import Command

# What is refused, with one line.


def test_bad_images_stop_or_are_left_out(tmp_path: Path) -> None:
    good = [m for n in range(5) for m in sample(f"k{n}", n, age=n % 2)]
    cut = image(7)[:-200]
    path = write(tmp_path / "x.tar", [*good, ("bad.jpg", b"no image"), ("empty.png", b""), ("cut.jpg", cut)])
    with pytest.raises(
        InputError, match=r"x\.tar: bad\.jpg: not a .*; .*empty\.png: .*\(2 bad images, in .*--on-bad"
    ):
        indexed(tmp_path / "index", path)
    assert {file.name for file in (tmp_path / "index").iterdir()} == {"bad.jsonl", LOCK}
    with pytest.raises(InputError, match="2 bad images"):  # the same command goes on
        indexed(tmp_path / "index", path)
    skip = OnBad("skip")
    assert indexed(tmp_path / "head", path, on_bad=skip).skipped == 2
    assert indexed(tmp_path / "head", path, on_bad=skip).skipped == 2  # indexed already
    assert indexed(tmp_path / "checked", path, on_bad=skip, check=True).skipped == 3
    with pytest.raises(InputError, match=r"3 bad images, in .*bad\.jsonl: more than the limit"):
        indexed(tmp_path / "few", path, on_bad=OnBad("skip", 2), check=True)
    header = Index.load(tmp_path / "checked").header
    assert header.skipped == 3 and header.splits["train"].count == 5
    assert not list(checker.problems(tmp_path / "checked"))
    assert any("cut.jpg" in line for line in checker.problems(tmp_path / "head"))
    packed = pack((str(path),), tmp_path / "packed", TINY, on_bad=skip)
    assert packed.skipped == 3 and packed.counts["train"] == 5
    lines = [(tmp_path / name / "bad.jsonl").read_text().splitlines() for name in ("checked", "packed")]
    named = [{(one["key"], one["where"]) for one in map(json.loads, some)} for some in lines]
    assert named[0] == named[1] and len(named[0]) == 3


@pytest.mark.parametrize(
    ("members", "told"),
    [
        ([("a.txt", b"x")], "no images in it"),
        ([("a.jpg", image(1)), ("a.json", b"{")], r"a\.json: not JSON"),
        ([("a.jpg", image(1)), ("a.cls", b"\xff")], r"a\.cls: not text in UTF-8"),
        ([("a.jpg", image(1)), ("a.jpg", image(1))], r"a\.jpg: a second one of this name"),
        ([("../a.jpg", image(1))], "a name that leads out"),
        ([("/a.jpg", image(1))], "a name that leads out"),
    ],
)
def test_what_is_no_webdataset(tmp_path: Path, members: list[tuple[str, bytes]], told: str) -> None:
    with pytest.raises(InputError, match=told):
        indexed(tmp_path / "index", write(tmp_path / "x.tar", members))
    assert not (tmp_path / "index").exists()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", ["bad.jsonl", "train-samples.npy", "test-samples.npy", ".pack.jsonl"])
def test_nothing_of_others_is_written_over(tars: Path, tmp_path: Path, name: str) -> None:
    (tars / name).write_text("mine")
    before = contents(tars)
    with pytest.raises(InputError, match=r"shards\.pack has begun|would write over"):
        indexed(tars, tars)
    assert contents(tars) == before


def test_an_interrupted_pack_is_left_alone(tars: Path, tmp_path: Path) -> None:
    write(tmp_path / "bad.tar", [*sample("a", 1), ("b.jpg", b"bad")])
    with pytest.raises(InputError, match="1 bad image"):
        pack(tmp_path / "bad.tar", tmp_path / "out", TINY, kind="webdataset")
    before = contents(tmp_path / "out")
    assert "bad.jsonl" in before
    with pytest.raises(InputError, match=r"shards\.pack has begun"):
        indexed(tmp_path / "out", tars)
    assert contents(tmp_path / "out") == before


def test_one_index_at_a_time(tars: Path, tmp_path: Path) -> None:
    def second(*_: object) -> None:
        with pytest.raises(InputError, match=r"another shards\.index is writing there"):
            indexed(tmp_path / "index", tars)
        with pytest.raises(InputError, match="not empty"):
            pack(tars, tmp_path / "index", TINY)

    indexed(tmp_path / "index", tars, report=second)
    assert not (tmp_path / "index" / LOCK).exists()


def test_an_address_of_this_machine_is_refused_at_once(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"0\.tar: an address of this machine's files; give a path"):
        indexed(tmp_path / "index", f"file://{tars}/0.tar")
    assert not (tmp_path / "index").exists()


def test_an_index_goes_on_after_a_kill(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "index"
    with monkeypatch.context() as patch:
        patch.setattr("shards.tables.write.INDEX_CAP", 10)
        with pytest.raises(InputError, match="would be larger than 10 bytes; give fewer tars"):
            indexed(out, tars)
    assert (out / "train-samples.npy").exists() and not (out / FILE).exists()
    assert indexed(out, tars).counts["train"] == 30


@pytest.mark.parametrize(("mode", "kind"), [("w:gz", "gzip"), ("w:bz2", "bzip2"), ("w:xz", "xz")])
def test_compressed_tars(tmp_path: Path, mode: str, kind: str) -> None:
    path = write(tmp_path / "x.tar", sample("a", 1), mode=mode)
    with pytest.raises(InputError, match=rf"compressed \({kind}\), so no image can be read where it lies"):
        indexed(tmp_path / "index", path)
    if kind == "gzip":
        assert pack([str(path)], tmp_path / "packed", TINY).counts == {"train": 1, "val": 0}
    else:
        with pytest.raises(InputError, match="allowed: plain tars, and gzipped"):
            pack([str(path)], tmp_path / "packed", TINY)


def test_links_and_cut_ends(tars: Path, tmp_path: Path) -> None:
    whole = (tars / "0.tar").read_bytes()
    (tars / "0.tar").write_bytes(whole[:-20_000])
    with pytest.raises(InputError, match=r"0\.tar: not a whole tar"):
        indexed(tmp_path / "index", tars)
    link = tarfile.TarInfo("a.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with tarfile.open(tars / "0.tar", "w") as archive:
        archive.addfile(link)
    with pytest.raises(InputError, match="a link or device"):
        indexed(tmp_path / "index", tars)


def test_what_lies_behind_the_end(tars: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Zeros may; the members of a second tar would be lost."""
    first = (tars / "0.tar").read_bytes()
    joined = tmp_path / "joined.tar"
    joined.write_bytes(first + bytes(3 << 20))
    assert indexed(tmp_path / "zeros", joined).counts["train"] == 10
    joined.write_bytes(first + (tars / "1.tar").read_bytes())
    with pytest.raises(InputError, match=r"joined\.tar: not a whole tar \(more behind the block .* cat"):
        indexed(tmp_path / "index", joined)
    with pytest.raises(InputError, match="more behind the block"):
        pack([str(joined)], tmp_path / "packed", TINY)
    monkeypatch.setattr(stream, "TAR_CAP", 1 << 20)
    joined.write_bytes(first + bytes(3 << 20))
    with pytest.raises(InputError, match=r"joined\.tar: not a whole tar \(more than 1048576 bytes\)"):
        indexed(tmp_path / "index", joined)


def test_the_command_line(tars: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "index"
    call = (index_command.main, tars / "{0..1}.tar", tars / "2.tar", "--out", out, "--size", 5, "--jobs", 1)
    code, told, _ = command(*call)
    assert code == 0 and "samples of 3 tars" in told
    before = (out / "index.json").read_bytes()
    code, told, _ = command(*call)
    assert code == 0 and "indexed already" in told and (out / "index.json").read_bytes() == before
    assert "verify" not in told
    code, told, _ = command(*call, "--check")
    assert code == 0 and "indexed already; shards.verify decodes every image" in told
    code, _, told = command(*call, "--columns", "class")
    assert code == 2 and "has an index already" in told and told.count("\n") == 1
    code, _, told = command(*call[:4], tmp_path / "o", "--columns", "clas", "--jobs", 1)
    assert code == 2 and "clas" in told and told.count("\n") == 1
    code, _, told = command(*call[:4], tmp_path / "o", "--columns", "a\x01b", "--jobs", 1)
    assert code == 2 and "--columns" in told and told.count("\n") == 1
    code, _, told = command(*call[:4], tars / "0.tar", "--jobs", 1)
    assert code == 2 and "not a folder" in told and told.count("\n") == 1
    code, _, told = command(*call[:-2], "--on-bad", "x")
    assert code == 2 and "--on-bad x" in told


def test_a_pack_from_several_paths(tars: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "packed"
    some = (tars / "0.tar", tars / "1.tar", "--out", out, "--size", 5, "--jobs", 1)
    code, told, _ = command(pack_command.main, *some)
    assert code == 0 and "webdataset, 2 labels" in told
    code, _, told = command(pack_command.main, *some, "--kind", "cifar10")
    assert code == 2 and "--kind cifar10" in told and told.count("\n") == 1


def test_splits_of_folders_and_names_are_kept(tmp_path: Path) -> None:
    for n, split in enumerate(("train", "validation", "test")):
        write_numbers(tmp_path / "t" / split / "0.tar", range(10 * n, 10 * n + 4))
    assert indexed(tmp_path / "index", tmp_path / "t").counts == {"train": 4, "val": 4, "test": 4}
    assert not list(checker.problems(tmp_path / "index"))
    pack(tmp_path / "t", tmp_path / "packed", TINY)
    for split in ("train", "val", "test"):
        with (
            ShardReader(tmp_path / "index", split, order="sequential") as here,
            ShardReader(tmp_path / "packed", split, order="sequential") as there,
        ):
            one, other = here.read(range(4)), there.read(range(4))
            assert one.keys == other.keys and np.array_equal(one.images, other.images)


def test_a_field_may_tell_the_splits(tmp_path: Path) -> None:
    splits = ("train", "TRAIN", "valid", "test")
    members = [m for n in range(12) for m in sample(f"k{n}", n, split=splits[n % 4], age=10 * (n % 2))]
    path = write(tmp_path / "x.tar", members)
    assert indexed(tmp_path / "index", path).counts == {"train": 6, "val": 3, "test": 3}
    assert not list(checker.problems(tmp_path / "index"))
    assert [a.name for a in Index.load(tmp_path / "index").schema] == ["age", "class"]
    indexed(tmp_path / "label", path, asked=Asked(columns=("split",)))
    assert Index.load(tmp_path / "label").header.split_by == "key"


def test_numbers_are_binned_and_unknown_columns_told(tmp_path: Path) -> None:
    path = write(tmp_path / "x.tar", [m for n in range(40) for m in sample(f"k{n}", n, size=n / 8)])
    assert any("--bins" in note for note in indexed(tmp_path / "none", path).notes)
    indexed(tmp_path / "index", path, asked=Asked(columns=("json.size",), bins=4))
    (size,) = Index.load(tmp_path / "index").schema
    assert size.name == "size" and size.variants == 4
    assert not list(checker.problems(tmp_path / "index"))
    with pytest.raises(InputError, match=r"no column 'sise'; there are: .*; did you mean size\?"):
        indexed(tmp_path / "no", path, asked=Asked(columns=("sise",)))


# The check.


def tampered(folder: Path, change: Callable[[dict], None]) -> None:
    header = json.loads((folder / "index.json").read_text())
    change(header)
    (folder / "index.json").write_text(json.dumps(header))


def test_verify_finds_what_changed(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    indexed(out, tars)
    assert not list(checker.problems(out))
    whole = (tars / "1.tar").read_bytes()
    write_numbers(tars / "1.tar", range(10, 19))
    told = "\n".join(checker.problems(out))
    assert "1.tar" in told and "k19: no good image where the index says" in told
    (tars / "1.tar").unlink()
    assert any("1.tar" in line for line in checker.problems(out))
    (tars / "1.tar").write_bytes(whole)
    assert not list(checker.problems(out))
    tampered(out, lambda header: header.update(val=0.9))
    assert any("belongs to another split" in line for line in checker.problems(out))


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("/etc/passwd", "absolute"),
        ("file:///etc/passwd", "address of this machine"),
        ("local://etc/passwd", "address of this machine"),
        ("AsyncLocal:///etc/passwd", "address of this machine"),
        ("a\nb.tar", "printed"),
    ],
)
def test_places_that_are_refused(tars: Path, tmp_path: Path, place: str, told: str) -> None:
    indexed(tmp_path / "index", tars)
    tampered(tmp_path / "index", lambda h: h["splits"]["train"]["shards"][0].update(place=place))
    with pytest.raises(InputError, match=told):
        Index.load(tmp_path / "index")


def test_places_that_an_index_cannot_name(tmp_path: Path) -> None:
    """They are told before any tar is read."""
    for name in ("sub\x01x.tar", os.fsdecode(b"caf\xe9.tar")):
        (tmp_path / name).write_bytes(b"no tar")
        with pytest.raises(InputError, match=r"\.tar: place: .*(printed|string)"):
            indexed(tmp_path / "index" / "x", tmp_path)
        (tmp_path / name).unlink()
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize("folder", ["file:x", "LOCAL:x", "s3::x"])
def test_paths_that_look_like_addresses(tmp_path: Path, folder: str) -> None:
    indexed(tmp_path / "x", write_numbers(tmp_path / "x" / folder / "a.tar", range(4)))
    assert Index.load(tmp_path / "x").shards[0].place == f"./{folder}/a.tar"
    assert not list(checker.problems(tmp_path / "x"))


def test_an_address_that_runs_something_is_refused(tars: Path, tmp_path: Path) -> None:
    indexed(tmp_path / "index", tars)

    def change(header: dict) -> None:
        for shard in header["splits"]["train"]["shards"]:
            shard["place"] = f"pipe:touch {tmp_path}/done{shard['name']}"

    tampered(tmp_path / "index", change)
    with pytest.raises(InputError, match="refused"):
        ShardReader(tmp_path / "index")


def test_a_packed_folder_has_no_places(packed: Path, copy: Path) -> None:
    tampered(copy, lambda h: h["splits"]["train"]["shards"][0].update(place="../x.tar"))
    with pytest.raises(InputError, match="place"):
        Index.load(copy)
