"""What the targets of shards share: feeding an image, an archive, or a packed folder with other files."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np

from diffbase.cli import InputError
from shards.codec.decode import decode_image
from shards.codec.encode import prepare_image
from shards.packing.verifier import problems
from shards.sources.archive import Archive
from shards.sources.base import KEY
from tests.support.fuzz.examples import packed


def source_image(data: bytes, folder: Path) -> object:
    """An image file as the packer takes it; what it becomes must be readable."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = prepare_image(data, "x", crop=None, size=8)
    decode_image(found, np.empty((8, 8, 3), np.uint8))
    return found


def archive(adapter: Callable[[Path], Archive], name: str) -> Callable[[bytes, Path], object]:
    """Archives of a kind: every sample has a key of its own and labels of the schema."""

    def feed(data: bytes, folder: Path) -> object:
        (folder / name).write_bytes(data)
        source = adapter(folder / name)
        samples = list(source.samples())
        assert samples and all(KEY.fullmatch(sample.key) for sample in samples)
        assert len({sample.key for sample in samples}) == len(samples)
        variants = {a.name: a.variants for a in source.schema}
        assert all(0 <= v < variants[name] for s in samples for name, v in s.labels.items())
        return samples

    return feed


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
