"""shards.verify: sound folders pass, and every fault is named with its shard and sample."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny_set import Command

from shards.index import FILE, Index, write_index
from shards.verify import main


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "copy"))


def test_sound(packed: Path, command: Command) -> None:
    code, out, err = command(main, packed)
    assert (code, err) == (0, "") and "sound" in out and out.count("\n") == 1


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
    assert f"{shards[2].name}: missing, with {split.shards[2].count} samples" in out
    assert out.count(": sample ") == 2  # the others are whole


def test_key_in_both_splits(copy: Path, command: Command) -> None:
    """Files that agree with each other may still hold what the packer never writes."""
    index = Index.load(copy)
    train, val = index.split("train"), index.split("val")
    rows = {"train": train.samples.tolist(), "val": train.samples.tolist()[: train.shards[0].count]}
    shutil.copy(copy / train.shards[0].name, copy / val.shards[0].name)
    shards = {
        "train": list(train.shards),
        "val": [train.shards[0].model_copy(update={"name": val.shards[0].name})],
    }
    about = index.header.model_dump(include={"preprocessing", "source", "shard_size", "val"})
    splits = {
        name: (shards[name], [(row[0].decode(), *row[1:]) for row in rows[name]]) for name in ("train", "val")
    }
    write_index(copy, index.schema, about, splits)

    code, out, _ = command(main, copy)
    assert code == 1
    for key in (train.key(0), train.key(train.shards[0].count - 1)):
        assert f"{val.shards[0].name}: sample {key}: its key appears twice" in out
        assert f"{val.shards[0].name}: sample {key}: belongs to another split" in out
    assert out.count("\n") == 2 * train.shards[0].count


def test_index_of_other_members(copy: Path, command: Command) -> None:
    """A table whose rows are exchanged reads well, sample by sample; the keys are wrong."""
    index = Index.load(copy)
    train = index.split("train")
    rows = [(row[0].decode(), *row[1:]) for row in train.samples.tolist()]
    (first, *_), (second, *_) = rows[:2]
    rows[0], rows[1] = (second, *rows[0][1:]), (first, *rows[1][1:])
    val = index.split("val")
    kept = [(row[0].decode(), *row[1:]) for row in val.samples.tolist()]
    about = index.header.model_dump(include={"preprocessing", "source", "shard_size", "val"})
    write_index(
        copy, index.schema, about, {"train": (list(train.shards), rows), "val": (list(val.shards), kept)}
    )
    code, out, _ = command(main, copy)
    assert code == 1 and out == f"{train.shards[0].name}: its members are not the ones of the index\n"
