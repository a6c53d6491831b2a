"""Our own packed folder as a source: labels, names, splits stay, images come in another form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.codec import ENCODINGS
from shards.codec.encode import prepare
from shards.packing import portion
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import UNKNOWN
from shards.sources import detect
from shards.table import Index
from tests.support.tiny_set import contents, keys_of, png


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty images with labels by name, some unknown, in splits of their own."""
    root = tmp_path_factory.mktemp("set")
    (root / "images").mkdir()
    rows = []
    for n in range(30):
        (root / "images" / f"{n}.png").write_bytes(png(pixels(n)))
        split = ("train", "train", "val", "train", "test")[n % 5]
        rows.append({"file_name": f"{n}.png", "split": split, "pet": [None, "cat", "dog"][n % 3]})
    (root / "images" / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    for encoding in ENCODINGS:
        pack(root / "images", root / encoding, Settings(size=12, image=encoding, shard_size=4))
    return root


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_packed_again_is_the_same(folder: Path, tmp_path: Path, encoding: str) -> None:
    source = detect(folder / encoding)
    assert (source.kind, source.total, source.split_by) == ("shards", 30, "source")
    pack(folder / encoding, tmp_path / "out", Settings(size=12, image="npy", shard_size=4))
    a, b = Index.load(folder / "npy"), Index.load(tmp_path / "out")
    assert [(x.name, x.variants, x.names) for x in a.schema] == [
        (x.name, x.variants, x.names) for x in b.schema
    ]
    assert b.schema[0].names == ("cat", "dog") and b.header.unknown == ("pet",)
    assert list(problems(tmp_path / "out")) == []
    for name in ("train", "val", "test"):
        # Same keys in the same order, labels and raw pixels: the same bytes.
        assert keys_of(a.folder, name) == keys_of(b.folder, name)
        for shard in a.split(name).shards:
            assert (tmp_path / "out" / shard.name).read_bytes() == (folder / "npy" / shard.name).read_bytes()


@pytest.mark.parametrize("encoding", ["png", "npy"])
def test_at_another_size(folder: Path, tmp_path: Path, encoding: str) -> None:
    pack(folder / encoding, tmp_path / "out", Settings(size=5, crop=10, image="png", val=0.5))
    assert set(contents(tmp_path / "out")) >= {"train-000000.tar", "val-000000.tar", "test-000000.tar"}
    for name in ("train", "val", "test"):
        with (
            ShardReader(folder / encoding, name, order="sequential") as old,
            ShardReader(tmp_path / "out", name, order="sequential") as new,
        ):
            assert len(old) == len(new)
            was, now = old.read(range(len(old))), new.read(range(len(old)))
        assert was.keys == now.keys and np.array_equal(was.labels, now.labels)
        for image, small in zip(was.images, now.images, strict=True):
            assert np.array_equal(small, prepare(Image.fromarray(image), "x", 10, 5))
    assert UNKNOWN in was.labels


def test_raw_pixels_of_any_size(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cap on files is none on what a pack of ours holds."""
    monkeypatch.setattr(portion, "IMAGE_CAP", 3 * 12 * 12 - 1)
    pack(folder / "npy", tmp_path / "out", Settings(size=12, image="png"), jobs=1)
    assert sum(map(len, Index.load(tmp_path / "out").splits.values())) == 30


def test_damage_is_told(folder: Path, tmp_path: Path) -> None:
    pack(folder / "images", tmp_path / "set", Settings(size=4))
    shard = tmp_path / "set" / "val-000000.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(InputError, match=r"val-000000\.tar: damaged \(its SHA-256"):
        pack(tmp_path / "set", tmp_path / "out", Settings(size=4))
    shard.unlink()
    with pytest.raises(InputError, match=r"val-000000\.tar: missing"):
        list(detect(tmp_path / "set").samples())
    index = tmp_path / "set" / "index.json"
    index.write_bytes(index.read_bytes().replace(b'"version": 3', b'"version": 9'))
    with pytest.raises(InputError, match="version 9"):
        detect(tmp_path / "set")


def test_an_unknown_class_is_unknown_to_who_takes_our_tars_for_others(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for n in range(6):
        (tmp_path / "set" / f"{n}.png").write_bytes(png(pixels(n)))
    rows = "".join(f"{n}.png,{('', 'cat', 'dog')[n % 3]}\n" for n in range(6))
    (tmp_path / "set" / "metadata.csv").write_text(f"file_name,class\n{rows}")
    pack(tmp_path / "set", tmp_path / "out", Settings(size=4, val=0))
    source = detect(tmp_path / "out" / "train-000000.tar")
    assert source.kind == "webdataset" and source.schema[0].variants == 2
    labels = {int(s.key): s.labels["class"] for s in source.samples()}
    assert labels == {n: (UNKNOWN, 0, 1)[n % 3] for n in range(6)}
