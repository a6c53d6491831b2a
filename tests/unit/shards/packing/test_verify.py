"""shards.verify: sound folders pass, and every fault is named with its shard and sample."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from shards.checking.verifier import problems
from shards.header import FILE, Shard
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.table import Index
from shards.tables.rows import Row
from shards.tables.write import write_index
from shards.verify import main
from tests.support.tiny_set import Command, png_of, row_of


def test_sound(packed: Path, command: Command) -> None:
    code, out, err = command(main, packed)
    *warnings, last = out.splitlines()
    assert (code, err) == (0, "") and "sound" in last
    assert all(": warning: " in line and "no training image of" in line for line in warnings)


def test_bad_usage(tmp_path: Path, command: Command) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        code, _, err = command(main, folder)
        assert code == 2 and "not found" in err and err.count("\n") == 1


def test_bad_index(copy: Path, command: Command) -> None:
    (copy / FILE).write_text("{")
    code, out, _ = command(main, copy)
    assert code == 1 and "index.json: not JSON" in out


def test_faults_are_named(copy: Path, command: Command) -> None:
    split = Index.load(copy).split("train")
    shards = [copy / shard.name for shard in split.shards]
    flipped = bytearray(shards[0].read_bytes())
    flipped[int(split.samples[1]["image_offset"]) + 50] ^= 1
    shards[0].write_bytes(flipped)
    last = int(split.starts[2]) - 1  # of the second shard
    shards[1].write_bytes(shards[1].read_bytes()[: int(split.samples[last]["image_offset"]) + 3])
    shards[2].unlink()

    code, out, err = command(main, copy)
    assert code == 1 and "problems" in err
    assert f"{shards[0].name}: its SHA-256 differs" in out
    assert f"{shards[0].name}: sample {split.key(1)}: damaged" in out
    assert f"{shards[1].name}: sample {split.key(last)}: the shard ends before it" in out
    assert (
        f"{shards[1].name}: {shards[1].stat().st_size} bytes; the index says {split.shards[1].bytes}" in out
    )
    assert f"{shards[2].name}: missing, with {split.shards[2].count} samples" in out
    assert out.count(": sample ") == 2  # the others are whole
    assert command(main, copy, "--jobs", 1) == command(main, copy, "--jobs", 3) == (code, out, err)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (rb'"eye_lid": \d', lambda m: m[0][:-1] + bytes([m[0][-1] ^ 1]), "labels are not the index's"),
        (rb'"hair": ', lambda m: b'"hair":9', "hair is 9[0-9]+; allowed: 0 to 110|not the index's"),
        (rb"}", lambda m: b"]", "its labels are not JSON"),
    ],
)
def test_label_member_must_agree(copy: Path, command: Command, old: bytes, new: Any, told: str) -> None:
    """The reader takes labels from the index; what other readers find in the shard must be the same."""
    shard, key, row = row_of(copy, 2)
    data = bytearray(shard.read_bytes())
    place = slice(row["label_offset"], row["label_offset"] + row["label_bytes"])
    data[place] = re.sub(old, new, bytes(data[place]), count=1)
    shard.write_bytes(data)
    code, out, _ = command(main, copy, "--jobs", 1)
    assert code == 1 and re.search(f"{shard.name}: sample {key}: .*({told})\n", out)
    assert out.count(": sample ") == 1


def test_folder_mended_between_two_looks(packed: Path, copy: Path) -> None:
    shard = copy / Index.load(copy).split("train").shards[0].name
    shard.write_bytes(bytes(shard.stat().st_size))
    assert len(list(problems(copy))) > 1
    shutil.copy(packed / shard.name, shard)
    assert list(problems(copy)) == []


def test_class_member_must_agree(tmp_path: Path, command: Command) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        (tmp_path / "set" / name / "a.png").write_bytes(png_of(name))
    pack(tmp_path / "set", tmp_path / "out", Settings(size=4, val=0))
    shard = tmp_path / "out" / "train-000000.tar"
    data = bytearray(shard.read_bytes())
    assert data[512:513] in (b"0", b"1")  # the first member, a .cls, begins after its header
    data[512] ^= 1
    shard.write_bytes(data)
    code, out, _ = command(main, tmp_path / "out", "--jobs", 1)
    assert code == 1 and re.search(r"not a whole shard \(\w+__a\.cls tells another class", out)


@pytest.mark.parametrize("jobs", [0, "many"])
def test_bad_jobs(packed: Path, command: Command, jobs: object) -> None:
    code, _, err = command(main, packed, "--jobs", jobs)
    assert code == 2 and "--jobs" in err and err.count("\n") == 1


def replace_split(folder: Path, name: str, shards: list[Shard], rows: list[Row]) -> None:
    """Write the index anew, with another content of one split."""
    index = Index.load(folder)
    splits = {n: (list(split.shards), split.rows(0, len(split))) for n, split in index.splits.items()}
    about = index.header.model_dump(include={"preprocessing", "source", "shard_size", "val"})
    write_index(folder, index.schema, about, {**splits, name: (shards, rows)})


def test_train_shard_in_val(copy: Path, command: Command) -> None:
    """Files that agree with each other may still hold what the packer never writes."""
    train = Index.load(copy).split("train")
    first = train.shards[0]
    shutil.copy(copy / first.name, copy / "val-000000.tar")
    shard = first.model_copy(update={"name": "val-000000.tar"})
    replace_split(copy, "val", [shard], train.rows(0, first.count))

    code, out, _ = command(main, copy)
    assert code == 1 and out.count("\n") == 2 * first.count
    for number in range(first.count):
        assert f"val-000000.tar: sample {train.key(number)}: its key appears twice" in out
        assert f"val-000000.tar: sample {train.key(number)}: belongs to another split" in out


def test_exchanged_keys(copy: Path, command: Command) -> None:
    """Every sample reads well then: only the members tell that their keys are wrong."""
    train = Index.load(copy).split("train")
    one, two, *rest = train.rows(0, len(train))
    replace_split(copy, "train", list(train.shards), [(two[0], *one[1:]), (one[0], *two[1:]), *rest])
    code, out, _ = command(main, copy)
    assert (code, out) == (1, f"{train.shards[0].name}: its members are not the ones of the index\n")
