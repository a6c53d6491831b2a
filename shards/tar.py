"""One tar shard: ``<key>.json`` and ``<key>.png`` of each sample, written and read back."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path

from shards.encode import Encoded
from shards.files import open_atomic
from shards.index import Row, Shard


def write_shard(path: Path, samples: Iterable[Encoded]) -> tuple[Shard, list[Row]]:
    """Write one shard, whole and durable or not at all; returns what ``read_back`` tells of it.

    Owner, mode and time of the members are fixed: the same samples give the same bytes.
    """
    from webdataset import TarWriter  # imports torch; reading back needs neither

    with (
        open_atomic(path) as file,
        TarWriter(file, user="diffcore", group="diffcore", mode=0o644, mtime=0, encoder=False) as tar,
    ):
        for sample in samples:
            tar.write({"__key__": sample.key, "png": sample.image, "json": sample.label})
    return read_back(path)


def read_back(path: Path) -> tuple[Shard, list[Row]]:
    """Read a tar shard back: what the index tells of it, and one row a sample.

    Raises ValueError, or tarfile's errors, unless it is a whole shard of image and label pairs.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        rows: list[Row] = []
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = archive.getmembers()
            for label, image in zip(members[::2], members[1::2], strict=True):
                key = image.name.removesuffix(".png")
                if (label.name, image.name) != (f"{key}.json", f"{key}.png"):
                    raise ValueError(f"{label.name} and {image.name} are no pair")
                crc = 0
                for member in (image, label):
                    file.seek(member.offset_data)
                    crc = zlib.crc32(file.read(member.size), crc)
                rows.append((key, image.offset_data, label.offset_data, image.size, label.size, crc))
    return Shard(name=path.name, count=len(rows), bytes=path.stat().st_size, sha256=digest), rows
