"""The check of an index of other people's tars: one line for each fault, none for what was left out."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from diffbase.cli import InputError
from shards.foreign import checker
from shards.header import FILE
from shards.packing.bad import OnBad
from shards.table import Index
from shards.tables.write import write_index
from shards.verify import main
from tests.support.foreign_tars import indexed, sample, write, write_numbers
from tests.support.tiny_set import Command


def test_a_tar_of_bad_images_alone_belongs_to_the_index(tars: Path, tmp_path: Path) -> None:
    out, skip = tmp_path / "index", OnBad("skip")
    write(tars / "3.tar", [("x.jpg", b"bad"), ("y.jpg", b"bad")])
    write(tars / "4.tar", [*sample("good", 1, age=0), *sample("bad", 2, age=10)[:-1], ("bad.jpg", b"bad")])
    assert indexed(out, tars, on_bad=skip).skipped == 3
    again = indexed(out, tars, on_bad=skip)
    assert again.complete_before and (again.skipped, again.tars) == (3, 5)
    assert list(checker.problems(out)) == []
    header = Index.load(out).header
    assert [(tar.name, tar.count) for tar in header.empty] == [("3.tar", 0)]
    write_numbers(tars / "5.tar", range(50, 53))
    with pytest.raises(InputError, match="has an index already, of other tars"):
        indexed(out, tars, on_bad=skip)
    write(tars / "3.tar", [("x.jpg", b"BAD"), ("y.jpg", b"bad")])
    assert list(checker.problems(out)) == ["3.tar: its SHA-256 differs from the index's"]
    (tars / "3.tar").unlink()
    assert list(checker.problems(out)) == [f"{out}/../tars/3.tar: No such file or directory"]


@pytest.mark.parametrize("twice", ["key", "image", "both"])
def test_a_sample_that_is_in_the_index_twice(tars: Path, tmp_path: Path, twice: str) -> None:
    out = tmp_path / "index"
    indexed(out, tars)
    index = Index.load(out)
    table = index.split("train").samples.copy()
    if twice == "both":
        table[4] = table[3]
    elif twice == "key":
        table["key"][4] = table["key"][3]
    else:
        table["image_offset"][4] = table["image_offset"][3]
    given = json.loads((out / FILE).read_text())
    about = {name: given[name] for name in ("preprocessing", "source", "shard_size", "val", "reading")}
    splits = {"train": (index.split("train").shards, table), "val": ((), index.split("val").samples)}
    write_index(out, index.schema, about, splits)
    lines = list(checker.problems(out))
    if twice == "key":
        assert lines[0] == "0.tar: sample k3: its key appears twice"
    else:
        key = "k3" if twice == "both" else "k4"
        assert lines[0] == f"0.tar: sample {key}: its image is in the index twice"
        assert re.fullmatch(r"0\.tar: the image at byte \d+ is not in the index", lines[1]) and not lines[2:]


def test_the_order_of_the_tars_is_not_that_of_the_fields(tmp_path: Path) -> None:
    """A check reads the tars of train first, whichever was given first."""
    for name, fields in (("a-val", "z"), ("b-train", "az")):
        members = [m for n in range(4) for m in sample(name + str(n), n, **dict.fromkeys(fields, n % 2))]
        write(tmp_path / "tars" / f"{name}.tar", members)
    indexed(tmp_path / "index", tmp_path / "tars")
    assert [a.name for a in Index.load(tmp_path / "index").schema] == ["a", "class", "z"]
    assert list(checker.problems(tmp_path / "index")) == []


def test_a_bad_image_is_one_line(tars: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    write_numbers(tars / "3.tar", range(3))  # the keys of other samples
    indexed(out, tars)
    for name, start in (("0.tar", 3), ("3.tar", 1)):
        split = Index.load(out).split("train")
        at = int(split.starts[[shard.name for shard in split.shards].index(name)]) + start
        data = bytearray((tars / name).read_bytes())
        offset = int(split.samples["image_offset"][at])
        data[offset : offset + 4] = b"bad!"
        (tars / name).write_bytes(data)
    lines = [line for line in checker.problems(out) if "SHA-256" not in line]
    assert [line for line in lines if "k3" in line] == [
        line for line in lines if "0.tar: k3.jpg: not a" in line
    ]
    assert sum("3.tar: k1.jpg: not a" in line for line in lines) == 1
    assert not any("no good image" in line for line in lines)


def test_nothing_of_other_people_is_repaired(tars: Path, tmp_path: Path, command: Command) -> None:
    indexed(tmp_path / "index", tars)
    (tars / "1.tar").unlink()
    code, _, err = command(main, tmp_path / "index", "--repair", tars, "--jobs", 1)
    assert code == 2 and "other people's tars" in err and "run shards.index again" in err
    assert err.count("\n") == 1


def test_an_index_names_each_file_once(tars: Path, tmp_path: Path) -> None:
    indexed(tmp_path / "index", tars)
    path = tmp_path / "index" / FILE
    path.write_text(path.read_text().replace("val-samples.npy", FILE))
    with pytest.raises(InputError, match="a file is named twice"):
        Index.load(tmp_path / "index")
