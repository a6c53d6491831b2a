"""Rows find their images, and what does not fit is one line."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import pytest

from diffbase.cli import InputError
from shards.sources.base import Asked
from shards.sources.labels import tables
from shards.sources.labels.matching import Labelled, Labels

IMAGES = ["a.png", "b/1.png", "b/2.png", "c/1.png", "c/Zoë.jpg"]


def read(text: str, images: Sequence[str] = IMAGES, **asked: object) -> Labelled:
    labels = Labels([PurePosixPath(image) for image in images], Asked(**asked))  # type: ignore[arg-type]
    labels.read(io.BytesIO(text.encode()), "table")
    labels.check()
    return labels.labelled([True] * len(images))


def said(labelled: Labelled) -> list[list[str]]:
    return [
        [attribute.said(variant) for variant in labelled.variants[attribute.name]]
        for attribute in labelled.schema
    ]


@pytest.mark.parametrize(
    "names",
    [
        IMAGES,
        ["./a.png", "b//1.png", "b\\2.png", "set/c/1.png", "/data/set/c/Zoe\u0308.jpg"],
        ["a", "b/1", "2.png", "x/y/c/1", "Zoë"],
        ["a", "b/1", "2", "c/1", "Zoe\u0308.jpg"],
    ],
)
@pytest.mark.parametrize("key", ["file_name", "Image Name", "whatever"])
def test_an_image_is_called_by_its_path_or_its_end(names: list[str], key: str) -> None:
    rows = "".join(f"x{n},{name}\n" for n, name in reversed(list(enumerate(names))))
    labelled = read(f"value,{key}\n{rows}")
    assert said(labelled) == [["x0", "x1", "x2", "x3", "x4"]]
    assert key in labelled.notes[0]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("file_name,x\na.png,1\n", r"table: 4 images without a row \(b/1.png, b/2.png, c/1.png, ...\)"),
        (
            "file_name,x\n" + "".join(f"{i},1\n" for i in [*IMAGES, "d", ""]),
            r"2 rows without an image \('d', nothing\)",
        ),
        ("file_name,x\na.png,1\na,2\n", "two rows for a.png"),
        ("file_name,x\n1.png,1\na.png,2\n", "'1.png' names several images; allowed: their paths"),
        ("f,x\nq,1\n", r"no column names the images \(such as a.png\); there are: f, x; --key tells which"),
        ("file_name,x\na.png,1\n../b/1.png,2\n", r"1 row without an image \('../b/1.png'\)"),
        (",x\na.png,u\n1.png,v\n", r"column \(without a name\): '1.png' names several images"),
        ("f,g,x\na.png,a.png,1\n", "several columns name the images: f, g; --key tells which"),
    ],
)
def test_what_does_not_fit(text: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read(text)


def test_the_images_may_be_named_by_a_column_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """As an index of pandas is written; it is looked for once."""
    monkeypatch.setattr(tables, "ROWS", 3)
    looked: list[str] = []
    found = Labels._key
    monkeypatch.setattr(Labels, "_key", lambda *given: (looked.append("x"), found(*given))[1])
    labelled = read(",x\n" + "".join(f"{i},v{n % 2}\n" for n, i in enumerate(IMAGES)))
    assert said(labelled) == [["v0", "v1", "v0", "v1", "v0"]] and looked == ["x"]
    assert labelled.notes[0] == "labels from table, images named by (without a name)"


def test_a_path_that_climbs_names_no_image_of_the_folder() -> None:
    images = [PurePosixPath(image) for image in ("train/a.png", "val/a.png")]
    labels = Labels(images, Asked())
    labels.read(io.BytesIO(b"file_name,x\na.png,1\n../val/a.png,2\n"), "table", PurePosixPath("train"))
    with pytest.raises(InputError, match=r"1 row without an image .*, 1 image without a row \(val/a.png\)"):
        labels.check()


TABLE = "key,name,x y,z\n" + "".join(f"{n},{i},v{n % 2},{n % 3}\n" for n, i in enumerate(IMAGES))


def test_columns_pick_and_order() -> None:
    assert [a.name for a in read(TABLE, key="name").schema] == ["key", "x y", "z"]
    assert [a.name for a in read(TABLE, columns=("z", "x y")).schema] == ["z", "x y"]


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"columns": ("xy",)}, "--columns: no column 'xy'; there are: .*; did you mean x y?"),
        ({"columns": ("name",)}, "--columns: name names the images"),
        ({"columns": ("z", "z")}, "--columns: a name is given twice"),
        ({"key": "nam"}, "--key: no column 'nam'; there are: key, name, x y, z; did you mean name?"),
        ({"key": "x y"}, "rows without an image .*which column x y names"),
        ({"bins": 1}, "--bins 1: allowed: 2 to 1000"),
    ],
)
def test_wrong_flags(asked: dict[str, object], problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        read(TABLE, **asked)


def test_one_of_many_files_named_by_numbers() -> None:
    """A column of whole numbers may look like names; the one that is called so is taken."""
    images = [f"{n}.png" for n in range(1, 9)]
    text = "age,id\n" + "".join(f"{n},{9 - n}\n" for n in range(1, 9))
    assert [a.name for a in read(text, images).schema] == ["age"]


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.sources.labels import attributes, matching

    monkeypatch.setattr(attributes, "ATTRIBUTES_CAP", 2)
    with pytest.raises(InputError, match=r"3 labels of 10 variants; at most 2 .*: --columns takes fewer"):
        read(TABLE, key="name")
    monkeypatch.setattr(matching, "CELLS_CAP", 9)
    with pytest.raises(InputError, match="more than 9 cells"):
        read(TABLE, key="name")


def test_names_that_no_index_takes() -> None:
    header = "file_name,,\u200b\u2028x," + "y" * 300
    notes = read(header + "\n" + "".join(f"{i},{n},{n},{n}\n" for n, i in enumerate(IMAGES))).notes
    (line,) = [note for note in notes if note.startswith("left out")]
    assert re.search("a name of no or more than 255 characters", line)
