"""One tar shard, written and read back: of each sample ``<key>.json`` and its image, ``<key>.png`` (or
``.webp``, ``.npy``, ``.jpg``). Class data has ``<key>.cls`` before them, the number of the class, as
WebDataset's users expect.

The bytes are those of ``webdataset.TarWriter``, which is not used: it imports torch, and so takes longer to
start than a thousand samples to write.
"""

from __future__ import annotations

import hashlib
import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from diffbase.files import open_atomic
from diffbase.system_error import reading
from shards.codec import STORED
from shards.codec.decode import BadSample
from shards.codec.labels import decode_labels, encode_labels
from shards.header import Shard
from shards.schema import Attribute
from shards.sources.tar_members import Member, members
from shards.tables.rows import MEMBER_CAP, Row

MEMBERS = 3  # of a sample, at most: .cls, .json and the image


class Records(NamedTuple):
    """Samples as they stand in a shard, one behind the other; the rows' offsets count from their start."""

    data: bytes
    rows: list[Row]


def records(
    samples: Iterable[tuple[str, dict[str, int], bytes]], names: Sequence[str], encoding: str
) -> Records:
    """The members of samples given as key, labels and image; ``names`` are the schema's, in its order.

    Owner, mode and time are fixed: the same samples give the same bytes.
    """
    data, rows = bytearray(), []

    def add(name: str, content: bytes) -> int:
        data.extend(_header(name, len(content)))
        start = len(data)
        data.extend(content)
        data.extend(bytes(-len(content) % tarfile.BLOCKSIZE))
        return start

    for key, labels, image in samples:
        label, cls = encode_labels(labels)
        if cls is not None:
            add(f"{key}.cls", cls)
        label_at = add(f"{key}.json", label)
        image_at = add(f"{key}.{encoding}", image)
        numbers = tuple(labels[name] for name in names)
        rows.append((key, image_at, label_at, len(image), len(label), zlib.crc32(image), numbers))
    return Records(bytes(data), rows)


def _header(name: str, size: int) -> bytes:
    """A member's header (POSIX ustar). ``name`` has at most 100 ASCII characters, ``size`` is in bytes."""

    def fields(checksum: bytes) -> bytes:
        return struct.pack(
            "100s8s8s8s12s12s8s101s8s32s32s183x",
            name.encode("ascii"),
            b"0000644",
            *(b"0000000", b"0000000"),
            *(b"%011o" % size, b"0" * 11),
            checksum,
            b"0",
            b"ustar\x0000",
            *(b"diffcore", b"diffcore"),
        )

    return fields(b"%06o\0 " % sum(fields(b" " * 8)))


class OtherBytesError(ValueError):
    """A shard was made that is not the one that was wanted."""


def write_shard(path: Path, parts: Iterable[Records], wanted: str | None = None) -> tuple[Shard, list[Row]]:
    """Write one shard, whole and durable or not at all; returns what ``read_back`` gives of it.

    OtherBytesError, and what was at ``path`` stays, where ``wanted`` is given and not its SHA-256.
    """
    rows: list[Row] = []
    digest, size = hashlib.sha256(), 0
    with open_atomic(path) as file:

        def write(data: bytes) -> None:
            nonlocal size
            file.write(data)
            digest.update(data)
            size += len(data)

        for part in parts:
            for key, image_at, label_at, image_bytes, label_bytes, crc, labels in part.rows:
                rows.append((key, image_at + size, label_at + size, image_bytes, label_bytes, crc, labels))
            write(part.data)
        write(bytes(2 * tarfile.BLOCKSIZE))  # the end, and up to a whole record of 10 KiB
        write(bytes(-size % tarfile.RECORDSIZE))
        if wanted not in (None, digest.hexdigest()):
            raise OtherBytesError
    return Shard(name=path.name, count=len(rows), bytes=size, sha256=digest.hexdigest()), rows


def read_back(path: Path, schema: Sequence[Attribute]) -> tuple[Shard, list[Row]]:
    """Read a tar shard back: what the index says of it, and one row per sample.

    Raises ValueError unless it is a whole shard of image and label pairs, all images of one encoding, the
    labels fit the schema and every ``.cls`` tells the class of its labels; OSError where the disk fails.
    """
    with reading(path) as file:
        size = os.fstat(file.fileno()).st_size
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        rows: list[Row] = []
        ending = None  # of the images
        sample: list[tuple[Member, bytes]] = []
        for member in members(file, size):
            sample.append((member, _content(file, member)))
            suffix = PurePosixPath(member.name).suffix
            if suffix[1:] in STORED or len(sample) == MEMBERS:  # the image is the last
                ending = ending or suffix
                rows.append(_row(sample, ending, schema))
                sample = []
        if sample:
            raise ValueError(f"{sample[-1][0].name} is the last member: not labels and images")
    return Shard(name=path.name, count=len(rows), bytes=size, sha256=digest), rows


def _row(sample: list[tuple[Member, bytes]], ending: str, schema: Sequence[Attribute]) -> Row:
    """The row of a sample's members, whose image's name has that ``ending``."""
    if len(sample) < 2:
        raise ValueError(f"{sample[0][0].name} is no pair of labels and image")
    *_, (label, label_data), (image, image_data) = sample
    key = image.name.removesuffix(ending)
    names = [member.name for member, _ in sample]
    if ending[1:] not in STORED or names != [
        f"{key}{end}" for end in (".cls", ".json", ending)[-len(names) :]
    ]:
        raise ValueError(f"{' and '.join(names)} are no pair of labels and image")
    try:
        labels = decode_labels(label_data, schema)
    except BadSample as error:
        raise ValueError(f"{label.name}: {error}") from error
    if len(sample) == 3 and [sample[0][1]] != [b"%d" % number for number in labels]:
        raise ValueError(f"{names[0]} tells another class than {label.name}")
    return key, image.start, label.start, image.size, label.size, zlib.crc32(image_data), labels


def _content(file: IO[bytes], member: Member) -> bytes:
    if member.size > MEMBER_CAP:
        raise ValueError(f"{member.name} has {member.size} bytes; at most {MEMBER_CAP} are allowed")
    return file.read(member.size)
