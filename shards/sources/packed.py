"""A folder that shards.pack or shards.index made as a source: its samples at another size or encoding.

Labels, names, keys and splits stay; every shard is held against its SHA-256 before its images are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from diffbase.cli import InputError
from diffbase.system_error import NO_FILE, patiently, read_bytes, reading, sha256_of
from shards.schema import FORMAT, INDEX
from shards.sources.base import AS_IT_IS, KEY, Asked, Contents, Sample
from shards.sources.layout import SPLIT_NAMES, key_of

if TYPE_CHECKING:
    from shards.header import Shard

HEAD = 4096  # bytes of an index in which its format stands


class PackedFolder:
    """A folder with an index.json of ours."""

    kind = "shards"
    forms: tuple[str, ...] = ("folder",)
    looks_like = "a folder that shards.pack or shards.index made"
    split_by = "source"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        # Not on top: numpy.
        from shards.table import Index

        self.name, self._path = path.resolve().name, path
        self._index = index = Index.load(path)
        self.schema = index.schema
        self.crop: int | None = index.header.preprocessing.crop if index.header.is_foreign else None
        for name, split in index.splits.items():
            if name not in SPLIT_NAMES.values():
                allowed = ", ".join(dict.fromkeys(SPLIT_NAMES.values()))
                raise InputError(f"{path}: split {name}; allowed: {allowed}")
            for shard in split.shards:
                if shard.is_elsewhere:
                    raise InputError(f"{path}: shards behind addresses; pack the tars themselves, by these")
        self.total: int | None = sum(map(len, index.splits.values()))
        self._read = 0

    @staticmethod
    def claims(contents: Contents) -> bool:
        """A folder with an index of ours."""
        index = contents.path / INDEX
        return index.is_file() and FORMAT.encode() in read_bytes(index, HEAD)

    def digest(self) -> str:
        """The index's fingerprint, which seals all bytes."""
        return self._index.fingerprint

    def samples(self) -> Iterator[Sample]:
        """The samples, shard by shard; InputError for a shard that is not the index's."""
        names = [attribute.name for attribute in self.schema]
        self._read = 0
        for split_name, split in self._index.splits.items():
            for number, shard in enumerate(split.shards):
                path = self._checked(shard)
                with reading(path) as file:
                    for row in split.rows(int(split.starts[number]), shard.count):
                        key, offset, _, size, _, _, labels = row
                        file.seek(offset)
                        data, planes = self._image(file.read(size), f"{path}: sample {key}")
                        self._read += 1
                        yield Sample(
                            key if KEY.fullmatch(key) else key_of(PurePosixPath(key)),
                            f"{path}: sample {key}",
                            data,
                            size,
                            dict(zip(names, labels, strict=True)),
                            planes,
                            split_name,
                        )

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / (self.total or 1)

    def _checked(self, shard: Shard) -> Path:
        path = self._path / shard.path
        try:
            digest = patiently(lambda: sha256_of(path), path)
        except NO_FILE:
            raise InputError(f"{path}: missing; {INDEX} names it") from None
        if digest != shard.sha256:
            raise InputError(f"{path}: damaged (its SHA-256 differs from {INDEX}'s)")
        return path

    def _image(self, data: bytes, where: str) -> tuple[bytes, int]:
        """An image as a sample has it: a file, or of raw pixels [E, E, 3] the planes and their edge."""
        if self._index.header.preprocessing.encoding != "npy":
            return data, 0
        import numpy as np

        from shards.codec.decode import npy_head

        size = self._index.size
        head = npy_head(size, size, 3)
        if not data.startswith(head) or len(data) != len(head) + 3 * size * size:
            raise InputError(f"{where}: not {size} x {size} raw pixels")
        pixels = np.frombuffer(data, np.uint8, offset=len(head)).reshape(size, size, 3)
        return pixels.transpose(2, 0, 1).tobytes(), size
