"""What the targets of shards share: feeding an image, an archive, or a packed folder with other files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.codec.decode import decode_image
from shards.codec.encode import prepare_image
from shards.foreign import checker
from shards.foreign.indexer import index
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import UNKNOWN
from shards.sources import Source
from shards.sources.base import AS_IT_IS, KEY
from shards.table import Index
from tests.support.fuzz.examples import packed


def source_image(data: bytes, folder: Path) -> object:
    """An image file as the packer takes it; what it becomes must be readable."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = prepare_image(data, "x", crop=None, size=8)
    decode_image(found, np.empty((8, 8, 3), np.uint8))
    return found


def archive(adapter: Callable[[Path], Source], name: str) -> Callable[[bytes, Path], object]:
    """Archives and files of a kind: every sample has a key of its own and labels of the schema."""

    def feed(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        source = adapter(folder / name)
        samples = list(source.samples())
        assert samples and all(KEY.fullmatch(sample.key) for sample in samples)
        assert len({sample.key for sample in samples}) == len(samples)
        variants = {a.name: a.variants for a in source.schema}
        assert all(UNKNOWN <= v < variants[name] for s in samples for name, v in s.labels.items())
        return samples

    return feed


def indexed(folder: Path) -> list[str]:
    """Tars of others in ``folder``, indexed there: every sample can be read, and the index is sound."""
    index([str(folder)], folder, Settings(size=4, val=0.2), AS_IT_IS, check=True)
    keys = []
    for name, split in Index.load(folder).splits.items():
        if len(split):
            with ShardReader(folder, name, order="sequential") as reader:
                keys += reader.read(range(len(reader))).keys
    assert len(set(keys)) == len(keys) and all(KEY.fullmatch(key) and key[0] not in "_." for key in keys)
    faults = list(checker.problems(folder))
    assert not faults, faults
    return keys


def verified(folder: Path, changed: dict[str, bytes]) -> None:
    """A packed folder with other files, as shards.verify sees it; InputError with the first fault."""
    for name, content in {**packed(), **changed}.items():
        (folder / name).write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        faults = list(problems(folder))
    assert all(fault.isprintable() and fault for fault in faults)
    if faults:
        raise InputError(faults[0])
