"""Parquet that Hugging Face's datasets write: the same images, labels, names and splits."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pyarrow import parquet

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.pack import main
from shards.packing import bad
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import UNKNOWN, Attribute
from shards.sources import Asked, Sample, detect
from shards.sources.parquet_images import ParquetImages
from shards.table import Index
from tests.support.tiny_set import Command, png

CLASSES = ["zebra", "ant", "bee"]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (6, 6, 3), np.uint8)


def file_of(path: Path, numbers: range, **columns: list[object]) -> Path:
    """A parquet file of images alone, or with more columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(pixels(n)), "path": None} for n in numbers]
    parquet.write_table(pa.table({"image": images, **columns}), path, row_group_size=7)
    return path


def with_classes(path: Path, classes: dict[str, list[str]], **columns: list[object]) -> Path:
    """A parquet file of images whose columns ``classes`` are ClassLabels, by what ``datasets`` writes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(columns.values())))
    table = pa.table({"image": [{"bytes": png(pixels(n)), "path": None} for n in range(count)], **columns})
    features = {name: {"_type": "ClassLabel", "names": names} for name, names in classes.items()}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), path)
    return path


def shown(sample: Sample) -> np.ndarray:
    assert isinstance(sample.image, bytes)
    return np.asarray(Image.open(io.BytesIO(sample.image)))


@pytest.mark.slow
def test_what_datasets_write_is_what_is_packed(tmp_path: Path, command: Command) -> None:
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=CLASSES),
            "mood": datasets.Value("string"),
            "caption": datasets.Value("string"),
        }
    )
    rows = {
        "image": [Image.fromarray(pixels(n)) for n in range(40)],
        "label": [None if n % 7 == 0 else n % 3 for n in range(40)],
        "mood": ["sad", "gay", None, "odd"] * 10,
        "caption": [f"words {n}" for n in range(40)],
    }
    given_rows = datasets.Dataset.from_dict(rows, features=features)
    (tmp_path / "set" / "data").mkdir(parents=True)
    (tmp_path / "set" / "README.md").touch()
    names = ("train-00000-of-00002", "train-00001-of-00002", "validation", "test-00000-of-00001")
    for number, name in enumerate(names):
        part = given_rows.select(range(10 * number, 10 * number + 10))
        part.to_parquet(tmp_path / "set" / "data" / f"{name}.parquet")

    code, out, err = command(main, tmp_path / "set", "--out", tmp_path / "out", "--size", 6, "--jobs", 1)
    assert code == 0 and "parquet" in out, err
    assert "1 other file passed over (README.md)" in out and "nearly every sample has a value" in out
    index = Index.load(tmp_path / "out")
    assert {name: len(split) for name, split in index.splits.items()} == {"train": 20, "val": 10, "test": 10}
    label = next(a for a in index.schema if a.name == "label")
    assert label.names == tuple(CLASSES) and list(problems(tmp_path / "out")) == []
    first = 0
    for split, count in (("train", 20), ("val", 10), ("test", 10)):
        with ShardReader(tmp_path / "out", split, order="sequential") as reader:
            batch = reader.read(range(count))
        for image, labels, row in zip(
            batch.images, batch.labels, given_rows.select(range(first, first + count)), strict=True
        ):
            assert np.array_equal(image, np.asarray(row["image"]))
            told = dict(zip([a.name for a in index.schema], labels.tolist(), strict=True))
            assert told["label"] == (UNKNOWN if row["label"] is None else row["label"])
            mood = next(a for a in index.schema if a.name == "mood")
            assert mood.said(told["mood"]) == (row["mood"] or "unknown")
        first += count


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(
            st.tuples(st.sampled_from(["a", "b", None]), st.none() | st.booleans()), min_size=1, max_size=9
        ),
        min_size=1,
        max_size=3,
    )
)
def test_files_and_rows_in_order(tmp_path_factory: pytest.TempPathFactory, parts: list) -> None:
    folder = tmp_path_factory.mktemp("set")
    first = 0
    for number, rows in enumerate(parts):
        words, flags = pa.array([r[0] for r in rows], pa.string()), pa.array([r[1] for r in rows], pa.bool_())
        file_of(folder / f"{number}.parquet", range(first, first + len(rows)), word=words, flag=flags)
        first += len(rows)
    source = ParquetImages(folder)
    samples = list(source.samples())
    assert source.total == len(samples) == first and len({s.key for s in samples}) == first
    assert all(np.array_equal(shown(sample), pixels(n)) for n, sample in enumerate(samples))
    schema = {attribute.name: attribute for attribute in source.schema}
    for sample, (word, flag) in zip(samples, [row for rows in parts for row in rows], strict=True):
        assert "word" not in schema or schema["word"].said(sample.labels["word"]) == (word or "unknown")
        told = {None: "unknown", True: "yes", False: "no"}[flag]
        assert "flag" not in schema or schema["flag"].said(sample.labels["flag"]) == told
    assert ParquetImages(folder).digest() == source.digest()


def test_bytes_alone_names_and_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a set.bin"
    images = [png(pixels(n)) for n in range(4)]
    columns = {"picture": images, "mask": images, "name": ["x/1.png", "x/2.png", "y/1.png", "é"]}
    parquet.write_table(pa.table({**columns, "kind": ["a", "b", "a", "b"], "n": [1.5, 2, 3, 9]}), path)
    with pytest.raises(
        InputError, match=r"several columns of images \(picture, mask\); --image-field chooses"
    ):
        detect(path)
    asked = Asked(image_field="mask", key="name", columns=("n", "kind"), bins=2)
    source = detect(path, asked=asked)
    assert source.schema == (Attribute("n", 2), Attribute("kind", 2))
    samples = list(source.samples())
    assert [s.key for s in samples][:3] == ["x__1", "x__2", "y__1"] and samples[3].labels == {
        "n": 1,
        "kind": 1,
    }
    assert next(detect(path, asked=Asked(image_field="mask")).samples()).key.startswith("a-set__0000000")
    for asked, told in (
        (Asked(image_field="mask", key="kind"), "two images are called a; keys must be unique"),
        (Asked(image_field="name"), "--image-field name: none of its columns of images"),
        (Asked(image_field="mask", columns=("nam",)), "no column 'nam'; .*did you mean name"),
        (Asked(image_field="mask", key="nam"), "--key: no column 'nam'"),
        (Asked(depth=2), "--depth: not for a source of kind parquet"),
    ):
        with pytest.raises(InputError, match=told):
            detect(path, asked=asked)


def test_paths_in_the_images_are_keys(tmp_path: Path) -> None:
    rows = [{"bytes": png(pixels(n)), "path": f"cat {n}.png"} for n in range(3)]
    parquet.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    assert [s.key[:6] for s in detect(tmp_path / "x.parquet").samples()] == ["cat-0-", "cat-1-", "cat-2-"]


@pytest.mark.parametrize("columns", ["label,mood", "mood,label", None])
def test_labels_stand_in_their_columns(tmp_path: Path, command: Command, columns: str | None) -> None:
    moods: list[object] = [None if n % 3 == 0 else ("sad", "odd", "gay")[n % 4 % 3] for n in range(40)]
    path = with_classes(
        tmp_path / "x.parquet", {"label": ["zebra", "ant"]}, label=[n % 2 for n in range(40)], mood=moods
    )
    asked = [] if columns is None else ["--columns", columns]
    code, _, err = command(
        main, path, "--out", tmp_path / "out", "--size", 6, "--jobs", 1, "--val", 0, *asked
    )
    assert code == 0, err
    schema = Index.load(tmp_path / "out").schema
    assert [a.name for a in schema] == (columns or "label,mood").split(",")
    with ShardReader(tmp_path / "out", "train", order="sequential") as reader:
        labels = reader.read(range(40)).labels.tolist()
    for n, row in enumerate(labels):
        told = {a.name: a.said(variant) for a, variant in zip(schema, row, strict=True)}
        assert told == {"label": ("zebra", "ant")[n % 2], "mood": moods[n] or "unknown"}
    assert list(problems(tmp_path / "out")) == []


def test_classes_of_some_files(tmp_path: Path) -> None:
    """Unknown where a file lacks the column, which is told; an error where it lacks the names only."""
    with_classes(tmp_path / "a.parquet", {"label": CLASSES}, label=[2, 0, None], n=[1, 2, 3])
    file_of(tmp_path / "b.parquet", range(2), n=[1, 2])
    source = detect(tmp_path)
    assert [s.labels["label"] for s in source.samples()] == [2, 0, *[UNKNOWN] * 3]
    assert "unknown, of 5 samples: label 3" in source.notes
    for first, second in (("a", "b"), ("b", "a")):
        with_classes(tmp_path / f"{first}.parquet", {"label": CLASSES}, label=[2, 0])
        file_of(tmp_path / f"{second}.parquet", range(2), label=[1, 0])
        with pytest.raises(
            InputError, match=r"b\.parquet: column label: with class names in some files only"
        ):
            detect(tmp_path)
    with_classes(tmp_path / "b.parquet", {"label": CLASSES[:2]}, label=[1, 0])
    with_classes(tmp_path / "a.parquet", {"label": CLASSES}, label=[1, 0])
    with pytest.raises(InputError, match="column label: other classes than in the files before"):
        detect(tmp_path)
    with_classes(tmp_path / "b.parquet", {"label": CLASSES}, label=[1, 3])
    with pytest.raises(InputError, match="column label: 3; allowed: 0 to 2"):
        detect(tmp_path)


def test_limits_count_classes(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(260)]
    path = with_classes(
        tmp_path / "x.parquet",
        {name: ["no", "yes"] for name in names},
        **{name: [0, 1] for name in names},
    )
    with pytest.raises(InputError, match="260 labels of 520 variants; at most 256 of"):
        detect(path)
    for name in ("", "x" * 300):
        with_classes(path, {name: CLASSES, "label": CLASSES}, **{name: [0, 1], "label": [0, 1]})
        source = detect(path)
        assert [a.name for a in source.schema] == ["label"]
        assert "a name of no or more than 255 characters" in source.notes[-1]
    with pytest.raises(InputError, match=r"column 'xxx.*a name of no or more than 255 characters"):
        detect(path, asked=Asked(columns=("x" * 300,)))


def test_names_of_columns_as_they_are_shown(tmp_path: Path) -> None:
    """Any spaces are one, in a flag and in a file; a name told twice is one line."""
    columns: dict[str, list[object]] = {"my  name": ["a", "b", "c"], "my\nmood": [0, 1, 0]}
    path = with_classes(tmp_path / "x.parquet", {"my\nmood": CLASSES}, **columns)
    source = detect(path, asked=Asked(columns=(" my   mood",), key="my  name", image_field=" image"))
    assert [a.name for a in source.schema] == ["my mood"]
    assert [s.key for s in source.samples()] == ["a", "b", "c"]
    for asked, told in (
        (Asked(columns=("my name", "my  name")), "--columns: a name is given twice"),
        (Asked(columns=("my mood", "my mood")), "--columns: a name is given twice"),
        (Asked(columns=("my name",), key="my name"), "--columns: my name names the images"),
    ):
        with pytest.raises(InputError, match=told):
            detect(path, asked=asked)
    file_of(path, range(2), **{"a b": [1, 2], "a  b": [3, 4]})
    with pytest.raises(InputError, match=r"x\.parquet: two columns have the name 'a b'"):
        detect(path)


def test_columns_called_as_the_parts_of_an_image(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    images, words = [png(pixels(n)) for n in range(3)], ["a", "b", "a"]
    structs = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)]
    for columns in (
        {"image.path": words, "image": images},
        {"image.path": words, "image": structs},
        {"image.bytes": [b"x"] * 3, "image": structs},
    ):
        parquet.write_table(pa.table(columns), path)
        source = detect(path, asked=Asked(image_field="image"))
        samples = list(source.samples())
        assert [s.image for s in samples] == images
        assert [s.key for s in samples] == (
            ["0", "1", "2"] if columns["image"] is structs else [f"x__000000{n}" for n in range(3)]
        )
        if "image.path" in columns:
            assert [source.schema[0].said(s.labels["image.path"]) for s in samples] == words


def test_keys_with_dots(tmp_path: Path) -> None:
    names = ["v1.0", "v1.1", "v1.2", "x.PNG"]
    keys = [s.key for s in detect(file_of(tmp_path / "x", range(4), n=names), asked=Asked(key="n")).samples()]
    assert [key[:5] for key in keys] == ["v1-0-", "v1-1-", "v1-2-", "x"]


def test_files_of_one_name_in_folders(tmp_path: Path) -> None:
    """As Hugging Face's own converted branches have them."""
    for split, count in (("train", 3), ("test", 2)):
        file_of(tmp_path / "set" / "default" / split / "0000.parquet", range(count))
    samples = list(detect(tmp_path / "set").samples())
    assert [(s.key, s.split) for s in samples] == [
        *((f"default__test__0000__000000{n}", "test") for n in range(2)),
        *((f"default__train__0000__000000{n}", None) for n in range(3)),
    ]


def test_a_column_tells_the_splits(tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.parquet", range(4), split=["train", "Test", "train", "test"])
    source = detect(path)
    assert source.split_by == "source" and source.schema == ()
    assert [s.split for s in source.samples()] == [None, "test", None, "test"]
    classes = with_classes(tmp_path / "y.parquet", {"split": ["test", "train"]}, split=[1, 0, 1])
    assert [s.split for s in detect(classes).samples()] == [None, "test", None]
    cases: list[tuple[list[object], str]] = [
        (["train", "later"], "'later'; allowed: train"),
        (["later", "later"], "'later'; allowed: train"),
        (["train", None], "an empty cell; allowed: train"),
        (["test", "test"], "nothing to train on"),
        (["train", "x" * 300], r"no splits \(free text .*--columns names those that are labels"),
    ]
    for splits, told in cases:
        file_of(path, range(2), split=splits)
        with pytest.raises(InputError, match=f"x\\.parquet: column split: {told}"):
            detect(path)


@pytest.mark.parametrize("columns", [["--columns", "label"], []])
def test_a_column_of_splits_beside_names_that_tell_them(
    tmp_path: Path, command: Command, columns: list[str]
) -> None:
    for split in ("train", "test"):
        rows = {"label": [0, 1, 0, 2], "split": [split] * 4}
        with_classes(tmp_path / "set" / f"{split}-0.parquet", {"label": CLASSES}, **rows)
    code, out, err = command(
        main, tmp_path / "set", "--out", tmp_path / "out", "--size", 6, "--jobs", 1, *columns
    )
    assert code == 0, err
    assert "split: the files' names tell the splits" in out
    index = Index.load(tmp_path / "out")
    assert [a.name for a in index.schema] == ["label"] and len(index.splits["test"]) == 4


def test_rows_without_an_image_are_bad_ones(tmp_path: Path) -> None:
    image = [None, b"", b"x"]
    table = pa.table({"image": [{"bytes": data, "path": "/etc/passwd"} for data in image]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(InputError, match="3 bad images"):
        pack(tmp_path / "x.parquet", tmp_path / "out", Settings(size=4))
    lines = map(json.loads, (tmp_path / "out" / bad.FILE).read_bytes().splitlines())
    found = sorted((line["where"].rpartition(": ")[2], line["reason"]) for line in lines)
    assert found[:2] == [("row 0", "an empty file"), ("row 1", "an empty file")]
    assert found[2][1].startswith("not a PNG, JPEG")


def test_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.parquet"
    whole = file_of(path, range(9)).read_bytes()
    cases: list[tuple[dict[str, object], str]] = [
        ({"n": [1, 2]}, "no column of images; there are: n"),
        ({"image": pa.array([], pa.binary())}, "a table without rows"),
    ]
    for columns, told in cases:
        parquet.write_table(pa.table(columns), path)
        with pytest.raises(InputError, match=told):
            list(detect(path).samples())
    for data in (whole[:-100], whole[:4], whole[:40] + bytes(60) + whole[100:]):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"x\.parquet: (truncated|not a parquet|row \d)"):
            list(detect(path).samples())
