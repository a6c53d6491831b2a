"""An index of version 4: what it gives is what a table in memory gives, and nothing wrong in it is used."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.checking.repair import repair
from shards.checking.verifier import problems
from shards.foreign import checker
from shards.header import FILE, Shard
from shards.order import ORDERS
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.packing.untrained import untrained
from shards.read import ShardReader
from shards.schema import Attribute
from shards.table import Index
from shards.tables import listed as listed_module
from shards.tables import write
from shards.tables.records import Records
from shards.tables.rows import Row, sample_dtype
from shards.tables.write import write_index
from shards.verify import main as verify
from tests.support.foreign_tars import indexed, write_numbers
from tests.support.tiny_set import Command, contents

TABLES = [f"{split}-{what}.npy" for split in ("train", "val") for what in ("samples", "shards", "blocks")]
ABOUT = {
    "preprocessing": Settings().preprocessing(None, "png"),
    "source": {"kind": "test", "name": "test", "digest": "0" * 64},
    "shard_size": 1000,
    "val": 0.0,
}
SCHEMA = (Attribute("class", 300), Attribute("side", 2))


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header = json.loads((folder / FILE).read_text())
    change(header)
    (folder / FILE).write_text(json.dumps(header))


def seal(folder: Path) -> None:
    """Have index.json tell the tables as they are now, and the blocks' hashes those of the rows."""
    header = json.loads((folder / FILE).read_text())
    for entry in header["splits"].values():
        for table in (entry["samples"], entry["listed"]["file"], entry["blocks"]):
            data = (folder / table["name"]).read_bytes()
            table.update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
    (folder / FILE).write_text(json.dumps(header))


def synthetic(folder: Path, count: int, per: int, wide: int = 8) -> np.ndarray:
    """An index of ``count`` samples in shards of ``per``, which are not there; its table."""
    rng = np.random.default_rng(count)
    table = np.zeros(count, sample_dtype(wide, SCHEMA))
    table["key"] = [b"k%d" % n for n in range(count)]
    table["image_offset"], table["image_bytes"] = 512 * rng.integers(0, 9, count), rng.integers(1, 99, count)
    table["label_offset"], table["label_bytes"] = 512 * rng.integers(0, 9, count), rng.integers(1, 99, count)
    table["crc"] = rng.integers(0, 2**32, count)
    table["labels"] = rng.integers(0, [300, 2], (count, 2))
    shards = [
        Shard(name=f"train-{n:06d}.tar", count=min(per, count - n * per), bytes=8192, sha256=f"{n:064x}")
        for n in range(-(-count // per))
    ]
    folder.mkdir(exist_ok=True)
    write_index(folder, SCHEMA, ABOUT, {"train": (shards, table)})
    return table


@pytest.mark.parametrize("order", ORDERS)
def test_a_reader_gives_what_it_gives_of_the_same_folder(packed: Path, listed: Path, order: str) -> None:
    assert (Index.load(packed).header.version, Index.load(listed).header.version) == (2, 4)
    given = {"seed": 3, "order": order, "batch": 8, "threads": 2}
    with ShardReader(packed, **given) as before, ShardReader(listed, **given) as now:
        assert before.order == now.order or before.order.name == now.order.name
        for first in range(0, 72, 24):
            a, b = before.read(range(first, first + 24)), now.read(range(first, first + 24))
            assert a.keys == b.keys
            np.testing.assert_array_equal(a.images, b.images)
            np.testing.assert_array_equal(a.labels, b.labels)


def test_all_that_looks_at_a_folder_says_the_same(packed: Path, listed: Path, tmp_path: Path) -> None:
    assert list(problems(listed)) == list(problems(packed)) == []
    assert untrained(listed) == untrained(packed)
    assert [s.model_dump() for s in Index.load(listed).shards] == [
        s.model_dump() for s in Index.load(packed).shards
    ]
    outs = [tmp_path / "of listed", tmp_path / "of packed"]
    for place, out in zip((listed, packed), outs, strict=True):
        pack(place, out, Settings(size=2))
    tars = [{name: data for name, data in contents(out).items() if name.endswith(".tar")} for out in outs]
    assert tars[0] == tars[1] and len(tars[0]) > 1


def test_a_finished_folder_is_known_again(mine: Path, source: Path, tiny: Callable[..., Settings]) -> None:
    assert pack(source, mine, tiny()).complete_before
    (mine / "train-000001.tar").unlink()
    with pytest.raises(InputError, match=r"train-000001\.tar: missing or damaged"):
        pack(source, mine, tiny())


def test_the_lowest_version_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(folder: str, count: int, per: int) -> int:
        synthetic(tmp_path / folder, count, per)
        return Index.load(tmp_path / folder).header.version

    monkeypatch.setattr(write, "HELD_SAMPLES", 100)
    assert [version("a", 100, 10), version("b", 101, 10)] == [2, 4]
    monkeypatch.setattr(write, "LISTED_CAP", 20)
    assert [version("c", 40, 2), version("d", 42, 2)] == [2, 4]
    monkeypatch.setattr(write, "INDEX_CAP", 2500)  # more than is listed, less than a list of 15
    assert [version("e", 4, 2), version("f", 30, 2)] == [2, 4]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_are_those_of_the_table(always: None, data: st.DataObject) -> None:
    """By numbers and by ranges, whatever is kept, in any order of looks, with blocks across shards."""
    count, per = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 40))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        block = data.draw(st.integers(1, 20))
        patch.setattr(write, "BLOCK", block)
        patch.setattr(listed_module, "BLOCK", block)
        patch.setattr(listed_module, "KEPT", data.draw(st.sampled_from([0, 2000, 1 << 20])))
        table = synthetic(Path(folder), count, per, wide=80)
        split = Index.load(Path(folder)).split("train")
        assert len(split) == count and split.starts[-1] == count
        for _ in range(data.draw(st.integers(1, 6))):
            numbers = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=12)), np.int64)
            for found, wanted in (
                (split.take(numbers), table[numbers]),
                (split.table.part(first := data.draw(st.integers(0, count)), 7), table[first : first + 7]),
            ):
                for name in table.dtype.names or ():
                    np.testing.assert_array_equal(found[name], wanted[name])
        assert [shard.count for shard in split.shards] == np.diff(split.starts).tolist()
        assert [split.shards[n] for n in range(len(split.shards))] == list(split.shards)


def test_opening_reads_no_row(always: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a batch reads no more than the blocks that it is in: at any number of samples."""
    synthetic(tmp_path / "a", 40_000, 100)
    read: list[tuple[str, int]] = []
    real = Records.read

    def counted(self: Records, first: int, count: int) -> Any:
        read.append((self.path.name, count))
        return real(self, first, count)

    monkeypatch.setattr(Records, "read", counted)
    split = Index.load(tmp_path / "a").split("train")
    assert not [name for name, _ in read if name == "train-samples.npy"]
    split.take(np.array([5, 39_999, 7, 6]))
    assert [count for name, count in read if name == "train-samples.npy"] == [1024, 40_000 % 1024]
    split.take(np.array([5, 39_999]))  # kept
    assert len([name for name, _ in read if name == "train-samples.npy"]) == 2
    held = sum(block.nbytes for block in split.table._kept.values())  # type: ignore[attr-defined]
    split.take(np.arange(40_000))
    assert held < sum(block.nbytes for block in split.table._kept.values()) <= listed_module.KEPT  # type: ignore[attr-defined]


def test_damaged_rows_are_told_when_they_are_read(always: None, tmp_path: Path) -> None:
    synthetic(tmp_path / "a", 5000, 100)
    path = tmp_path / "a" / "train-samples.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    split = Index.load(tmp_path / "a").split("train")
    split.take(np.arange(4096))
    for _ in range(2):  # it stays so
        with pytest.raises(InputError, match=r"train-samples\.npy: damaged \(rows 4096 to 4999\)"):
            split.take(np.array([0, 4097]))


@pytest.mark.parametrize("name", ["train-shards.npy", "train-blocks.npy"])
@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "missing; index.json names it"),
        (lambda path: os.truncate(path, 200), "200 bytes; index.json says"),
        (lambda path: path.write_bytes(path.read_bytes()[:-1] + b"\xff"), "damaged .its SHA-256 differs"),
        (lambda path: (path.unlink(), path.mkdir()), "missing; index.json names it"),
    ],
    ids=["gone", "cut", "bit", "folder"],
)
def test_damaged_lists_are_told_at_once(
    mine: Path, name: str, damage: Callable[[Path], object], told: str
) -> None:
    damage(mine / name)
    with pytest.raises(InputError, match=f"{name}: {told}"):
        Index.load(mine)


@pytest.mark.parametrize("change", ["cut", "longer", "written over"])
def test_a_table_that_changes_while_it_is_open(always: None, tmp_path: Path, change: str) -> None:
    """No signal and no other rows: one line."""
    table = synthetic(tmp_path / "a", 5000, 100)
    path = tmp_path / "a" / "train-samples.npy"
    split = Index.load(tmp_path / "a").split("train")
    np.testing.assert_array_equal(split.take(np.array([4999]))["crc"], table["crc"][[4999]])
    if change == "cut":
        os.truncate(path, 4000)
    elif change == "longer":
        os.truncate(path, path.stat().st_size + 1)
    else:
        with path.open("r+b") as file:
            file.write(b"x")
        os.utime(path, ns=(0, 0))
    with pytest.raises(InputError, match=r"train-samples\.npy: has changed since it was opened"):
        split.take(np.array([0]))


def test_another_table_in_its_place_is_not_seen(always: None, tmp_path: Path) -> None:
    table = synthetic(tmp_path / "a", 3000, 100)
    split = Index.load(tmp_path / "a").split("train")
    synthetic(tmp_path / "a", 2000, 100)  # renamed into place: the open file is the old one
    np.testing.assert_array_equal(split.take(np.arange(3000))["crc"], table["crc"])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: h.update(version=3), "listed and blocks are of version 4 alone"),
        (lambda h: h["splits"]["train"].pop("listed"), "needs listed and blocks, and no shards"),
        (lambda h: h["splits"]["train"].pop("blocks"), "needs listed and blocks, and no shards"),
        (lambda h: h["splits"]["train"].update(shards=[{}]), "splits.train.shards.0"),
        (lambda h: h["splits"]["train"].update(count=29), "do not hold the 29 samples|another number"),
        (lambda h: h["splits"]["train"]["listed"].update(count=4), "another number of shards than the 4"),
        (lambda h: h["splits"]["train"]["listed"].update(count=1 << 27), "listed.count: "),
        (lambda h: h["splits"]["train"]["listed"].update(bytes=1), "other sizes than index.json tells"),
        (lambda h: h["splits"]["train"]["listed"].update(largest=1), "other sizes than index.json tells"),
        (lambda h: h["splits"]["train"]["listed"].update(places="paths"), "only an index of shards.index"),
        (lambda h: h["splits"]["train"]["listed"]["file"].update(name="../x"), "not a plain file name"),
        (lambda h: h["splits"]["train"]["blocks"].update(name="val-blocks.npy"), "a file is named twice"),
        (lambda h: h["splits"]["train"]["samples"].update(bytes=1 << 41), "samples.bytes: "),
    ],
)
def test_bad_header(mine: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    edit(mine, change)
    with pytest.raises(InputError, match=told):
        Index.load(mine)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (b"../x.tar", "not a plain file name"),
        (b"\xff.tar", "a name that is not UTF-8"),
        (b"", "not a plain file name"),
        (FILE.encode(), "is a file of the index"),
        (b"val-blocks.npy", "is a file of the index"),
    ],
)
def test_a_bad_name_is_told_when_the_shard_is_asked_for(mine: Path, name: bytes, told: str) -> None:
    path = mine / "train-shards.npy"
    records = np.load(path)
    records["name"][1] = name
    np.save(path, records)
    seal(mine)
    split = Index.load(mine).split("train")
    assert split.shards[0].name == "train-000000.tar"
    for look in (lambda: split.shards[1], lambda: list(split.shards), lambda: Index.load(mine).shards):
        with pytest.raises(InputError, match=rf"train-shards\.npy: row 1: .*{told}"):
            look()


@pytest.mark.parametrize(
    ("column", "value"), [("first", 0), ("first", -1), ("first", 1 << 60), ("bytes", -1), ("bytes", 1 << 50)]
)
def test_bad_numbers_of_a_shard(mine: Path, column: str, value: int) -> None:
    records = np.load(mine / "train-shards.npy")
    records[column][1] = value
    np.save(mine / "train-shards.npy", records)
    seal(mine)
    with pytest.raises(InputError, match=r"train-shards\.npy: "):
        Index.load(mine)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_index_is_told_or_valid(listed: Path, data: st.DataObject) -> None:
    """Any byte of any file of the index, with hashes that fit: a line, or rows that can be used."""
    name = data.draw(st.sampled_from([FILE, *TABLES]))
    whole = (listed / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    mutated = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + data.draw(st.integers(0, 6)) :]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in (FILE, *TABLES):
            shutil.copy(listed / file, folder)
        (folder / name).write_bytes(mutated)
        if name != FILE:
            if name.endswith("samples.npy") and len(mutated) == len(whole):
                head = len(whole) - len(np.load(listed / name).tobytes())
                hashes = np.load(folder / name.replace("samples", "blocks"))
                hashes["sha256"][0] = np.frombuffer(hashlib.sha256(mutated[head:]).digest(), np.uint8)
                np.save(folder / name.replace("samples", "blocks"), hashes)
            seal(folder)
        try:
            index = Index.load(folder)
            for split in index.splits.values():
                rows = split.take(np.arange(len(split)))
                ends = np.array([shard.bytes for shard in split.shards])[
                    split.shard_of(np.arange(len(split)))
                ]
                assert (rows["image_offset"] + rows["image_bytes"] <= ends).all()
        except InputError as error:
            assert str(error).isprintable()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_repair_makes_all_again_but_the_list(
    listed: Path, source: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(listed, tmp_path_factory.mktemp("any") / "copy"))
    names = sorted(
        p.name for p in folder.iterdir() if p.suffix in (".tar", ".npy") and "shards" not in p.name
    )
    damaged = data.draw(st.sets(st.sampled_from(names), max_size=4))
    for name in damaged:
        os.truncate(folder / name, data.draw(st.integers(0, (folder / name).stat().st_size - 1)))
    lines = list(repair(folder, source))
    assert sorted(line.partition(":")[0] for line in lines) == sorted(damaged)
    assert contents(folder) == contents(listed)
    os.truncate(folder / "val-shards.npy", 10)
    with pytest.raises(InputError, match=r"val-shards\.npy: 10 bytes"):
        list(repair(folder, source))


def test_shared_until_a_list_changes(mine: Path) -> None:
    held = Index.shared(mine)
    assert Index.shared(mine) is held
    (mine / "new").write_bytes((mine / "train-blocks.npy").read_bytes())
    (mine / "new").replace(mine / "train-blocks.npy")
    assert Index.shared(mine) is not held


def test_descriptors_go_with_the_index(mine: Path) -> None:
    def held() -> list[str]:
        links = []
        for one in Path("/proc/self/fd").iterdir():
            try:
                links.append(str(one.readlink()))
            except OSError:  # the listing's own
                continue
        return [link for link in links if link.startswith(str(mine))]

    index = Index.load(mine)
    index.split("train").take(np.arange(5))
    assert len(held()) == 6
    del index
    assert not held()


def test_a_forked_process_reads(listed: Path) -> None:
    with ShardReader(listed, order="full") as reader:
        wanted = reader.read(range(20)).keys
        from_child, to_parent = os.pipe()
        if not (child := os.fork()):
            os.write(to_parent, json.dumps(reader.read(range(20)).keys).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert json.loads(os.read(from_child, 1 << 16)) == wanted
        os.close(from_child)
        os.close(to_parent)


def test_an_index_of_other_peoples_tars(always: None, tmp_path: Path) -> None:
    out, tars = tmp_path / "index", tmp_path / "tars"
    for number in range(3):
        write_numbers(tars / f"{number}.tar", range(10 * number, 10 * number + 10))
    indexed(out, tars)
    header = Index.load(out).header
    assert header.version == 4 and header.has_places and not header.is_elsewhere
    assert list(checker.problems(out)) == []
    with ShardReader(out, order="full") as reader:
        assert len(reader.read(range(len(reader))).keys) == len(reader)
    assert indexed(out, tars).complete_before


def test_no_more_shards_than_a_list_may_have(
    always: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "LIST_CAP", 3)
    with pytest.raises(InputError, match="more than 3 shards in a split; give a larger --shard-size"):
        synthetic(tmp_path / "a", 40, 10)
    assert not (tmp_path / "a" / FILE).exists()


def test_rows_of_a_row(always: None, tmp_path: Path) -> None:
    table = synthetic(tmp_path / "a", 30, 7)
    split = Index.load(tmp_path / "a").split("train")
    rows: list[Row] = split.rows(0, 30)
    assert [row[0] for row in rows] == [split.key(n) for n in range(30)]
    assert [row[-1] for row in rows] == [tuple(labels) for labels in table["labels"].tolist()]


def test_verify_tells_damaged_rows_and_names(mine: Path, command: Command) -> None:
    """With exit code 1, as of a table in memory."""
    assert command(verify, mine)[0] == 0
    data = bytearray((mine / "val-samples.npy").read_bytes())
    data[-1] ^= 1
    (mine / "val-samples.npy").write_bytes(data)
    code, out, _ = command(verify, mine)
    assert code == 1 and "val-samples.npy: damaged (rows 0 to 9)" in out
    data[-1] ^= 1
    (mine / "val-samples.npy").write_bytes(data)
    records = np.load(mine / "train-shards.npy")
    records["name"][1] = records["name"][0]
    np.save(mine / "train-shards.npy", records)
    seal(mine)
    code, out, _ = command(verify, mine)
    assert code == 1 and "index.json: a file is named twice" in out
