"""CIFAR-10's archive."""

from __future__ import annotations

from pathlib import Path

from shards.sources.cifar10 import CLASSES, CifarArchive
from tests.support.fuzz import shard_files
from tests.support.fuzz.target import Target


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.tar").write_bytes(data)
        samples = list(CifarArchive(folder / "x.tar").samples())
        assert samples and all(0 <= sample.labels["class"] < len(CLASSES) for sample in samples)
        return samples

    return Target([shard_files.cifar_tar()], feed, [b"data_batch_6.bin", b"cifar-10-batches-py/"])
