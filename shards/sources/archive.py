"""Tar archives as they come from the net: streamed, plain or gzipped, never unpacked to disk.

A gzipped one may hold a thousand times its size. Reading it then takes as much longer, but no more memory:
members are passed over in pieces, and what waits for something is counted.
"""

from __future__ import annotations

import gzip
import hashlib
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO

from diffbase.cli import InputError
from shards.sources.base import AS_IT_IS, Asked, Sample
from shards.sources.tar_members import BadTar, Stream, members

SUFFIXES = (".tgz", ".tar.gz", ".tar")
DAMAGE = (BadTar, EOFError, zlib.error, gzip.BadGzipFile)
DEFLATED = 1032  # bytes that deflate makes of one at most
MEMBERS_CAP = 3_000_000  # of an archive; Cartoon Set's has 200,000
TAIL_CAP = 64 << 20  # bytes behind an archive's end; tar fills up its last record with at most a few MiB
HEAD_MEMBERS, HEAD_CAP = 1000, 64 << 20  # members and bytes among which an archive's first file is looked for


class Archive(ABC):
    """One archive file as a source: its digest, progress and members. A subclass says what these mean.

    Names that are absolute or climb with ``..``, links and devices are refused, though nothing here would
    follow them: such an archive is not the data set.
    """

    kind: str
    split_by = "key"
    notes: tuple[str, ...] = ()
    total: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        self.path = path
        self.name = path.resolve().name
        self._size = path.stat().st_size
        self._raw: IO[bytes] | None = None

    def digest(self) -> str:
        """SHA-256 of the archive file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fraction(self) -> float:
        """Share of the archive's bytes read so far; 1 before and after reading."""
        return self._raw.tell() / self._size if self._raw is not None and not self._raw.closed else 1.0

    def samples(self) -> Iterator[Sample]:
        """The samples in the archive's order. InputError for a truncated or damaged archive."""
        try:
            with self.path.open("rb") as raw:
                self._raw = raw
                stream = _plain(raw)
                yield from self._samples(stream)
                # Behind the archive's end there may be more zeros, and there is gzip's checksum.
                tail = 0
                while data := stream.read(1 << 20):
                    tail += len(data)
                    if tail > TAIL_CAP:
                        raise BadTar(f"more than {TAIL_CAP >> 20} MiB behind its end")
        except DAMAGE as error:
            raise InputError(f"{self.path}: truncated or damaged archive ({error})") from error

    @abstractmethod
    def _samples(self, stream: Stream) -> Iterator[Sample]:
        """The samples of the whole, decompressed archive, in its order."""

    def _members(
        self, stream: Stream, wanted: Callable[[PurePosixPath], bool]
    ) -> Iterator[tuple[PurePosixPath, str, int]]:
        """Path, name for errors and bytes of each ``wanted`` file, whose content is next in ``stream``."""
        for number, member in enumerate(members(stream, _most(self._size, stream))):
            if number == MEMBERS_CAP:
                raise BadTar(f"more than {MEMBERS_CAP} members")
            where = f"{self.path}: {member.name}"
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts:
                raise InputError(f"{where}: a name that leads out of the archive")
            if member.kind == "other":
                raise InputError(f"{where}: a link or device; allowed: plain files and folders")
            if member.kind == "file" and wanted(path):
                yield path, where, member.size


def first_file(path: Path) -> PurePosixPath | None:
    """The first plain file in an archive, from its head alone; None for an empty or damaged archive."""
    with suppress(*DAMAGE), path.open("rb") as raw:
        stream = _plain(raw)
        for member in islice(members(stream, _most(path.stat().st_size, stream)), HEAD_MEMBERS):
            name = PurePosixPath(member.name)
            if member.kind == "file" and not name.name.startswith("."):
                return name
            if member.start + member.size > HEAD_CAP:
                break
    return None


def _most(size: int, stream: Stream) -> int:
    """Bytes that can come of a file of ``size`` bytes."""
    return size * DEFLATED if isinstance(stream, gzip.GzipFile) else size


def _plain(raw: IO[bytes]) -> Stream:
    magic = raw.read(2)
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if magic == b"\x1f\x8b" else raw
