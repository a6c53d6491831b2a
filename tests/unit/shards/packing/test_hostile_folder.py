"""Packed folders that somebody else made: verify says each fault in one line, and ends; so does a pack."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from diffbase.cli import InputError
from shards.header import FILE
from shards.pack import main as pack_main
from shards.packing import journal as journal_module
from shards.packing import plan as plan_module
from shards.packing.journal import JOURNAL
from shards.packing.packer import pack
from shards.packing.plan import Settings, plan_shards
from shards.sources.base import Sample
from shards.table import Index
from shards.tables import write as write_module
from shards.verify import main
from tests.support.fuzz.hostile import header, padded
from tests.support.tiny_set import TINY, Command

SHARDS = {
    "a member of 2**70 bytes": header(b"0", b"\x80\0\0\x40" + bytes(8)) + bytes(3584),
    "a PAX length of 20 digits": header(b"x", b"%011o\0" % 28) + padded(b"12345678901234567890 path=x\n"),
    "a sparse size of letters": header(b"x", b"%011o\0" % 26) + padded(b"26 GNU.sparse.size=abcdef\n"),
    "2,000 chained headers": (header(b"L", b"00000000001\0") + padded(b"x")) * 2000,
    "a name that a terminal would obey": header(b"0", bytes(12), b"\x1b[2J\na.json") * 2 + bytes(1024),
    "nothing": b"",
    "not a tar": b"junk" * 1000,
}


@pytest.mark.parametrize("what", SHARDS)
@pytest.mark.parametrize("jobs", [1, 2])
def test_verify_of_a_hostile_shard(copy: Path, command: Command, what: str, jobs: int) -> None:
    name = Index.load(copy).split("train").shards[0].name
    (copy / name).write_bytes(SHARDS[what])
    code, out, err = command(main, copy, "--jobs", jobs)
    lines = out.splitlines()
    assert code == 1 and f"{len(lines)} problems" in err and "Traceback" not in out + err
    assert all(line.isprintable() and line.startswith(name) for line in lines)
    assert any("not a whole shard" in line for line in lines)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_verify_of_a_shard_that_may_not_be_read(copy: Path, command: Command) -> None:
    (copy / Index.load(copy).split("train").shards[0].name).chmod(0)
    code, out, _ = command(main, copy)
    assert code == 1 and "cannot be read (Permission denied)" in out


@pytest.mark.slow
def test_verify_where_the_disk_fails(copy: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """That says nothing of the shard: the same command may go on later."""

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("shards.checking.verifier.read_back", fail)
    code, out, err = command(main, copy, "--jobs", 1)
    assert code == 75 and not out and "(EIO, 7 tries)" in err


@pytest.mark.parametrize(
    "name", ["a" * 300 + ".tar", "a\nb.tar", "\x1b[2J.tar", "a/b", "..", "a\0b"], ids=ascii
)
def test_verify_of_an_index_with_bad_names(copy: Path, command: Command, name: str) -> None:
    tree = json.loads((copy / FILE).read_text())
    tree["splits"]["train"]["shards"][0]["name"] = name
    (copy / FILE).write_text(json.dumps(tree))
    code, out, _ = command(main, copy)
    assert code == 1 and out.count("\n") == 1 and out.rstrip("\n").isprintable()
    assert "splits.train.shards.0.name: " in out


def test_labels_of_megabytes_are_not_parsed(copy: Path, command: Command) -> None:
    data = b"[" + b"{}," * (1 << 20) + b"{}]"
    name = Index.load(copy).split("train").shards[0].name
    (copy / name).write_bytes(
        header(b"0", b"%011o\0" % len(data), b"a.json")
        + padded(data)
        + header(b"0", bytes(12), b"a.png")
        + bytes(1024)
    )
    _, out, _ = command(main, copy, "--jobs", 1)
    assert f"its labels have {len(data)} bytes; at most 1048576 are allowed" in out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"[" * 100_000 + b"\n", "nested too deeply"),
        (b"{}\n" + b"[" * 100_000 + b"\n", "not a journal"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "not a journal"),
        (b'{}\n{"name": "train-000000.tar", "sha256": null, "samples": ""}\n', "sha256: "),
        (b"{}" + b" " * 2000 + b"\n", "larger than 1000 bytes"),
    ],
    ids=["deep", "a deep line", "a large number", "null", "large"],
)
def test_hostile_journal(
    make_source, tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: bytes, told: str
) -> None:
    if told.startswith("larger"):
        monkeypatch.setattr(journal_module, "JOURNAL_CAP", 1000)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / JOURNAL).write_bytes(text)
    with pytest.raises(InputError, match=told):
        pack(make_source(tmp_path / "source", range(3)), tmp_path / "out", tiny())
    assert (tmp_path / "out" / JOURNAL).read_bytes() == text


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_journal_that_is_no_plain_file(make_source, tiny, tmp_path: Path, kind: str) -> None:
    """What a link led to would be cut or written to; a pipe would never answer."""
    other = tmp_path / "thesis.txt"
    other.write_text("without a newline")
    (tmp_path / "out").mkdir()
    if kind == "link":
        (tmp_path / "out" / JOURNAL).symlink_to(other)
    else:
        os.mkfifo(tmp_path / "out" / JOURNAL)
    with pytest.raises(OSError, match=r"is a link, which is not|is no plain file") as told:
        pack(make_source(tmp_path / "source", range(3)), tmp_path / "out", tiny())
    assert told.value.filename == str(tmp_path / "out" / JOURNAL)
    assert other.read_text() == "without a newline"


def test_images_that_wait_for_their_shard_are_bounded(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(plan_module, "HELD_CAP", 100)
    samples = [Sample(f"k{n}", f"where{n}", bytes(30), 30, {}) for n in range(9)]
    assert len(list(plan_shards(samples, Settings(val=0, shard_size=3)))) == 3
    with pytest.raises(InputError, match=r"where3: more than 0 MiB of images wait .*smaller --shard-size"):
        list(plan_shards(samples, Settings(val=0, shard_size=4)))
    files = [Sample(f"k{n}", f"where{n}", tmp_path, 30, {}) for n in range(9)]
    assert len(list(plan_shards(files, Settings(val=0, shard_size=4)))) == 3  # whose images are not here


def test_no_larger_index_than_a_reader_takes(
    make_source, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_source(tmp_path / "source", range(5))
    monkeypatch.setattr(write_module, "INDEX_CAP", 500)
    code, _, err = command(pack_main, source, "--out", tmp_path / "out", *TINY, "--shard-size", 1)
    assert code == 2 and "would be larger than 500 bytes" in err


def test_source_of_any_name(make_source, tiny, tmp_path: Path) -> None:
    """A folder's name may be bytes that are no text; an index that nobody can read helps no one."""
    source = make_source(tmp_path / os.fsdecode(b"set\xff"), range(3))
    pack(source, tmp_path / "out", tiny())
    assert Index.load(tmp_path / "out").header.source.name == "set\ufffd"
    assert pack(source, tmp_path / "out", tiny()).complete_before
