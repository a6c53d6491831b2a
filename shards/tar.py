"""One tar shard, written and read back: of each sample ``<key>.json`` and its image, ``<key>.png``, ``.webp``
or ``.npy``. Class data has ``<key>.cls`` before them, the number of the class, as WebDataset's users expect.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import IO

from shards.encode import Encoded, class_of
from shards.files import open_atomic
from shards.index import MEMBER_CAP, Row, Shard
from shards.plan import ENCODINGS


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
            members = {sample.encoding: sample.image, "json": sample.label}
            if sample.cls is not None:
                members["cls"] = sample.cls
            tar.write({"__key__": sample.key, **members})
    return read_back(path)


def read_back(path: Path) -> tuple[Shard, list[Row]]:
    """Read a tar shard back: what the index tells of it, and one row a sample.

    Raises ValueError, or tarfile's errors, unless it is a whole shard of image and label pairs, all images of
    one encoding, and every ``.cls`` tells the class of its labels.
    """
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        rows: list[Row] = []
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = archive.getmembers()
            width = 3 if members and members[0].name.endswith(".cls") else 2  # members of a sample
            ending = PurePosixPath(members[-1].name).suffix if members else ""
            if len(members) % width or (members and ending[1:] not in ENCODINGS):
                raise ValueError(f"{len(members)} members, the last one {ending}: not labels and images")
            for first in range(0, len(members), width):
                *classes, label, image = members[first : first + width]
                key = image.name.removesuffix(ending)
                names = [member.name for member in (*classes, label, image)]
                if names != [f"{key}{end}" for end in (".cls", ".json", ending)[-width:]]:
                    raise ValueError(f"{' and '.join(names)} are no pair")
                image_data, label_data, *class_data = (
                    _content(file, member) for member in (image, label, *classes)
                )
                if class_data and class_data[0] != class_of(label_data):
                    raise ValueError(f"{classes[0].name} tells another class than {label.name}")
                crc = zlib.crc32(label_data, zlib.crc32(image_data))
                rows.append((key, image.offset_data, label.offset_data, image.size, label.size, crc))
    return Shard(name=path.name, count=len(rows), bytes=path.stat().st_size, sha256=digest), rows


def _content(file: IO[bytes], member: tarfile.TarInfo) -> bytes:
    if not 0 <= member.size <= MEMBER_CAP:
        raise ValueError(f"{member.name} has {member.size} bytes; at most {MEMBER_CAP} are allowed")
    file.seek(member.offset_data)
    return file.read(member.size)
