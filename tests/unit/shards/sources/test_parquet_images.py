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


def test_a_column_tells_the_splits(tmp_path: Path) -> None:
    path = file_of(tmp_path / "x.parquet", range(4), split=["train", "Test", "train", "test"])
    source = detect(path)
    assert source.split_by == "source" and source.schema == ()
    assert [s.split for s in source.samples()] == [None, "test", None, "test"]
    file_of(path, range(2), split=["train", "later"])
    with pytest.raises(InputError, match="column split: 'later'; allowed: train"):
        detect(path)


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
