"""Packed shards are what any reader of tar files or of WebDataset expects."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from tiny_set import labels_of, pixels_of

from shards.index import Index
from shards.tar import read_back


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


@pytest.mark.parametrize(
    "names", [["a.json"], ["a.json", "b.png"], ["a.png", "a.json"], ["a.json", "a.jpg"]], ids=" ".join
)
def test_read_back_wants_pairs(tmp_path: Path, names: list[str]) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in names:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
    with pytest.raises(ValueError, match=r"no pair|not labels and images"):
        read_back(tmp_path / "x.tar")
