"""Packed shards are what any reader of tar files or of WebDataset expects."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from shards.codec import ENCODINGS
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.packing.tar import read_back, records, write_shard
from shards.read import ShardReader
from shards.schema import UNKNOWN, Attribute
from shards.table import Index
from tests.support.tiny_set import labels_of, pixels_of, png_of


def test_stock_readers_agree(packed: Path) -> None:
    import webdataset

    index = Index.load(packed)
    shards = [shard.name for split in index.splits.values() for shard in split.shards]
    seen = {}
    for name in shards:
        with tarfile.open(packed / name) as archive:
            members = archive.getmembers()
            for member in members:
                file = archive.extractfile(member)
                assert file is not None
                seen[member.name] = file.read()
            assert {(m.mtime, m.uname, m.mode, m.uid) for m in members} == {(0, "diffcore", 0o644, 0)}
    assert len(seen) == 80

    stock = webdataset.WebDataset([str(packed / name) for name in shards], shardshuffle=False)
    count = 0
    for sample in stock.decode("rgb8"):
        key = sample["__key__"]
        assert sample["json"] == labels_of(key) == json.loads(seen[f"{key}.json"])
        assert list(sample["json"]) == sorted(sample["json"])
        assert sample["png"].shape == (4, 4, 3)
        assert np.array_equal(sample["png"], pixels_of(seen[f"{key}.png"]))
        count += 1
    assert count == 40


def test_labels_come_in_the_schemas_order(tmp_path: Path) -> None:
    """Whatever the order in which a source gives them."""
    samples = [("k1", {"b": 1, "a": 0}, b"image"), ("k2", {"a": 0, "b": 1}, b"image")]
    made = records(samples, ["a", "b"], "png")
    _, rows = write_shard(tmp_path / "x.tar", [made])
    assert [row[-1] for row in rows] == [(0, 1), (0, 1)]
    assert read_back(tmp_path / "x.tar", [Attribute("a", 2), Attribute("b", 2)])[1] == rows


def test_bytes_are_tar_writers(tmp_path: Path) -> None:
    """The packer writes the very bytes that webdataset's writer would."""
    import webdataset

    for name in ("ant", "b" * 70):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "a.png").write_bytes(png_of(name))
    pack(tmp_path / "classes", tmp_path / "out", Settings(size=4, val=0))
    shard = tmp_path / "out" / "train-000000.tar"
    stream = io.BytesIO()
    options = {"user": "diffcore", "group": "diffcore", "mode": 0o644, "mtime": 0, "encoder": False}
    with tarfile.open(shard) as archive, webdataset.TarWriter(stream, **options) as writer:
        members = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}
        for key in dict.fromkeys(name.split(".")[0] for name in members):
            writer.write({"__key__": key, **{end: members[f"{key}.{end}"] for end in ("cls", "json", "png")}})
    assert stream.getvalue() == shard.read_bytes()


def test_read_back_tells_what_was_written(copy: Path) -> None:
    index = Index.load(copy)
    for split in index.splits.values():
        for shard, start in zip(split.shards, split.starts.tolist(), strict=False):
            assert read_back(copy / shard.name, index.schema) == (shard, split.rows(start, shard.count))


@pytest.mark.parametrize(
    "names", [["a.json"], ["a.json", "b.png"], ["a.png", "a.json"], ["a.json", "a.gif"]], ids=" ".join
)
def test_read_back_wants_pairs(tmp_path: Path, names: list[str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"no pair|not labels and images"):
        read_back(tmp_path / "x.tar", ())


def sources(folder: Path) -> dict[str, Path]:
    """Images without labels, with classes, with attributes, and with labels that some lack."""
    for name in ("none", "class", "unknown"):
        for number in range(9):
            path = (
                folder
                / name
                / (f"{'ant' if number % 2 else 'é bee'}" if name == "class" else "")
                / f"{number}.png"
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png_of(f"{name}{number}"))
    rows = "".join(f"{n}.png,{'cat' if n % 2 else 'dog'},{n % 3 if n % 4 else ''}\n" for n in range(9))
    (folder / "unknown" / "metadata.csv").write_text(f"file_name,pet,the size\n{rows}")
    only = folder / "unknown class"
    shutil.copytree(folder / "none", only)
    rows = "".join(f"{n}.png,{'' if n % 4 == 0 else n % 2}\n" for n in range(9))
    (only / "metadata.csv").write_text(f"file_name,class\n{rows}")
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_form_is_read_by_stock_readers(make_source, tmp_path: Path, monkeypatch, encoding: str) -> None:
    """Count, images and labels, by webdataset and by Hugging Face's datasets."""
    import datasets
    import webdataset

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    (tmp_path / "sources").mkdir()
    found = {**sources(tmp_path / "sources"), "attributes": make_source(tmp_path / "attributes", range(9))}
    for kind, source in found.items():
        out = tmp_path / f"{kind} out"
        pack(source, out, Settings(size=4, crop=12, image=encoding, shard_size=4, val=0))
        with ShardReader(out, order="sequential") as reader:
            batch, schema = reader.read(range(9)), reader.schema
        labels = [
            {a.name: None if v == UNKNOWN else v for a, v in zip(schema, row, strict=True)}
            for row in batch.labels.tolist()
        ]
        assert any(None in row.values() for row in labels) == kind.startswith("unknown")
        classed = [a.name for a in schema] == ["class"]

        tars = sorted(str(path) for path in out.glob("train-*.tar"))
        stock = list(webdataset.WebDataset(tars, shardshuffle=False).decode("rgb8"))
        rows = datasets.load_dataset(
            "webdataset", data_files={"train": tars}, split="train", cache_dir=str(tmp_path / f"{kind} cache")
        )
        assert len(stock) == len(rows) == 9, kind
        for number, (theirs, row) in enumerate(zip(stock, rows, strict=True)):
            wanted = labels[number]
            assert theirs["__key__"] == row["__key__"] == batch.keys[number]
            for image in (theirs[encoding], row[encoding]):
                assert np.array_equal(np.asarray(image), batch.images[number]), kind
            assert theirs["json"] == wanted and (row["json"] or {}) == wanted, kind
            cls = int(batch.labels[number, 0]) if classed else None
            assert theirs.get("cls") == row.get("cls") == cls, kind


def test_hugging_face_datasets_drop_no_row(tmp_path: Path, monkeypatch) -> None:
    """They pass over names that begin with an underscore, so no key does, whatever the folders are called."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    files = [(folder, name) for folder in ("кошка", "猫", "__x__", "_", "ant") for name in ("1", "_2", "é")]
    for folder, name in files:
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / folder / f"{name}.png").write_bytes(png_of(f"{folder}/{name}"))
    pack(tmp_path / "set", tmp_path / "out", Settings(size=4, val=0))
    stock = datasets.load_dataset(
        "webdataset",
        data_files={"train": str(tmp_path / "out" / "train-*.tar")},
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    with ShardReader(tmp_path / "out", order="sequential") as reader:
        batch = reader.read(range(len(files)))
    assert stock["__key__"] == batch.keys and len(set(batch.keys)) == len(files)
    assert stock["cls"] == batch.labels[:, 0].tolist()
    assert all(np.array_equal(np.asarray(a), b) for a, b in zip(stock["png"], batch.images, strict=True))
