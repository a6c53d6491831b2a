"""Other people's tars: what their fields, keys and texts become, whatever else is given."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.foreign import checker
from shards.packing.bad import OnBad
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.schema import Attribute
from shards.sources.base import AS_IT_IS, Asked
from shards.table import Index
from tests.support.foreign_tars import TINY, Member, image, indexed, sample, write, write_numbers


def schema_of(folder: Path) -> list[tuple[str, int]]:
    return [(attribute.name, attribute.variants) for attribute in Index.load(folder).schema]


def test_the_order_of_attributes_is_not_the_tars(tmp_path: Path) -> None:
    """An index lists the tars of train first, a command line in any order."""
    for k, (split, fields) in enumerate([("test", ("aaa", "mid")), ("train", ("mid", "zzz"))]):
        members = [m for n in range(8) for m in sample(f"{k}-{n}", n, **dict.fromkeys(fields, n % 2))]
        write(tmp_path / "t" / f"x-{split}-0.tar", members)
    indexed(tmp_path / "index", tmp_path / "t")
    assert [name for name, _ in schema_of(tmp_path / "index")] == ["aaa", "class", "mid", "zzz"]
    assert not list(checker.problems(tmp_path / "index"))


def numbered(path: Path, classes: int) -> Path:
    members: list[Member] = []
    for n in range(2 * classes):
        age = json.dumps({"age": n}).encode()
        members += [(f"{n}.jpg", image(n)), (f"{n}.cls", str(n % classes).encode()), (f"{n}.json", age)]
    return write(path, members)


@pytest.mark.parametrize(
    ("classes", "asked", "told"),
    [
        (20, Asked(columns=("class", "json.age"), bins=4), [("class", 20), ("age", 4)]),
        (20, Asked(bins=4), [("age", 4), ("class", 20)]),
        (70, AS_IT_IS, [("class", 70)]),
    ],
)
def test_numbers_of_classes_are_never_binned(
    tmp_path: Path, classes: int, asked: Asked, told: list[tuple[str, int]]
) -> None:
    indexed(tmp_path / "index", numbered(tmp_path / "x.tar", classes), asked=asked)
    assert schema_of(tmp_path / "index") == told
    (label,) = [a for a in Index.load(tmp_path / "index").schema if a.name == "class"]
    assert label == Attribute("class", classes) and label.names[-1] == str(classes - 1)


def splits_of(folder: Path) -> dict[tuple[str, int], str]:
    """By tar and offset of each image, or by its checksum where the tars are our own."""
    index = Index.load(folder)
    return {
        (shard.name, row[1]) if index.header.is_foreign else ("", row[5]): split.name
        for split in index.splits.values()
        for number, shard in enumerate(split.shards)
        for row in split.rows(int(split.starts[number]), shard.count)
    }


def test_another_tar_with_the_same_keys_moves_no_sample(tmp_path: Path) -> None:
    given = Settings(size=5, val=0.3)
    write_numbers(tmp_path / "a.tar", range(40))
    members = [(f"k{n}.jpg", image(n + 100)) for n in range(60)]
    write(tmp_path / "b.tar", [*members, *((f"k{n}.cls", b"c0") for n in range(60))])
    for make in ("index", "pack"):
        for name, tars in (("one", ["a"]), ("two", ["a", "b"])):
            paths = [tmp_path / f"{tar}.tar" for tar in tars]
            out = tmp_path / f"{make}-{name}"
            if make == "index":
                indexed(out, *paths, given=given)
                assert not list(checker.problems(out))
            else:
                pack([str(path) for path in paths], out, given)
                assert not list(problems(out))
        one, two = splits_of(tmp_path / f"{make}-one"), splits_of(tmp_path / f"{make}-two")
        assert len(one) == 40 and set(one.values()) == {"train", "val"}
        assert {sample: two[sample] for sample in one} == one
    counts = [
        {n: len(s) for n, s in Index.load(tmp_path / f"{m}-two").splits.items()} for m in ("index", "pack")
    ]
    assert counts[0] == counts[1]


def test_bad_images_are_told_before_labels(tmp_path: Path) -> None:
    """Where none is left, nothing can be said of the labels."""
    path = write_numbers(tmp_path / "x.tar", range(4))
    for columns, action in ((("class",), "stop"), ((), "skip")):
        with pytest.raises(InputError, match=r"too small for --crop 500.*4 bad images"):
            indexed(
                tmp_path / "index",
                path,
                given=Settings(size=5, crop=500),
                asked=Asked(columns=columns),
                on_bad=OnBad(action),
            )
        assert len((tmp_path / "index" / "bad.jsonl").read_text().splitlines()) == 4


def test_a_mask_alone_is_no_sample(tmp_path: Path) -> None:
    members = [m for n in range(5) for m in ((f"s{n}.png", image(n, "png")), (f"s{n}.cls", b"c%d" % (n % 2)))]
    masks = [
        ("s6.seg.png", image(6, "png")),
        ("s7.seg.png", image(7, "png")),
        ("s7.dep.png", image(8, "png")),
    ]
    done = indexed(tmp_path / "index", write(tmp_path / "x.tar", [*members, *masks]))
    assert done.counts["train"] == 5
    assert "2 imageless samples passed over" in done.notes


def test_a_text_beside_a_class_is_told(tmp_path: Path) -> None:
    path = write_numbers(tmp_path / "x.tar", range(4))
    assert "left out: txt: the class is told by another field" in indexed(tmp_path / "index", path).notes
    asked = Asked(columns=("class",))
    assert not any("txt" in note for note in indexed(tmp_path / "asked", path, asked=asked).notes)


@pytest.mark.parametrize("columns", [("cls",), ()])
def test_a_text_in_another_encoding_is_unknown(tmp_path: Path, columns: tuple[str, ...]) -> None:
    members = [m for n in range(4) for m in sample(f"s{n}", n)][1:]
    path = write(tmp_path / "x.tar", [("s0.txt", b"caf\xe9"), *members])
    done = indexed(tmp_path / "index", path, asked=Asked(columns=columns))
    assert schema_of(tmp_path / "index") == [("class", 3)]
    assert "1 non-UTF-8 text passed over" in done.notes
    assert not list(checker.problems(tmp_path / "index"))
    assert pack([str(path)], tmp_path / "packed", TINY, asked=Asked(columns=columns)).counts["train"] == 4
