"""Tar archives as they come from the net: streamed, plain or gzipped, never unpacked to disk."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import IO

from diffbase.cli import InputError
from diffbase.system_error import named
from shards.codec.tar_headers import DEFLATE, checked, member_class, one_error
from shards.sources.base import Sample

SUFFIXES = (".tgz", ".tar.gz", ".tar")
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
Stream = IO[bytes] | gzip.GzipFile
GZIP = b"\x1f\x8b"


class Archive(ABC):
    """One archive file as a source: its digest, progress and members. A subclass says what these mean.

    Names that are absolute or climb with ``..``, links and devices are refused, though nothing here would
    follow them: such an archive is not the data set.
    """

    total: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self._size = path.stat().st_size
        self._length = unpacked(path)
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
            with named(self.path), self.path.open("rb") as raw:
                self._raw = raw
                stream = _plain(raw)
                yield from self._samples(stream)
                # tarfile stops at the end-of-archive blocks; gzip's own checksum comes after them.
                while stream.read(1 << 20):
                    pass
        except DAMAGE as error:
            raise InputError(f"{self.path}: truncated or damaged archive ({error})") from error

    @abstractmethod
    def _samples(self, stream: Stream) -> Iterator[Sample]:
        """The samples of the whole, decompressed archive, in its order."""

    def _members(
        self, stream: Stream, wanted: Callable[[PurePosixPath], bool]
    ) -> Iterator[tuple[PurePosixPath, str, int, IO[bytes]]]:
        """Path, name for errors, bytes and content of each ``wanted`` file, to be read before the next."""
        with _opened(stream, self._length) as archive:
            for member in _headers(archive, self._length):
                where = f"{self.path}: {member.name}"
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{where}: a name that leads out of the archive")
                if member.isdir() or (member.isfile() and not wanted(path)):
                    continue
                if not member.isfile():
                    raise InputError(f"{where}: a link or device; allowed: plain files and folders")
                file = archive.extractfile(member)
                assert file is not None
                yield path, where, member.size, file


def first_file(path: Path) -> PurePosixPath | None:
    """The first plain file in an archive, from its head alone; None for an empty or damaged archive."""
    with (
        suppress(*DAMAGE),
        path.open("rb") as raw,
        _opened(_plain(raw), unpacked(path)) as archive,
    ):
        for member in _headers(archive, unpacked(path)):
            name = PurePosixPath(member.name)
            if member.isfile() and not name.name.startswith("."):
                return name
    return None


def unpacked(path: Path) -> int:
    """The most bytes that an archive can have when unpacked, by its own length."""
    size = path.stat().st_size
    with path.open("rb") as raw:
        return size * (DEFLATE if raw.read(2) == GZIP else 1)


def _opened(stream: Stream, length: int) -> tarfile.TarFile:
    with one_error():
        return tarfile.open(fileobj=stream, mode="r|", tarinfo=member_class(length))


def _headers(archive: tarfile.TarFile, length: int) -> Iterator[tarfile.TarInfo]:
    """The members of a stream, each to be read before the next."""
    while True:
        with one_error():
            member = archive.next()
        if member is None:
            return
        # TarFile keeps every member that it has met; on a stream that is only a leak.
        archive.members = []  # type: ignore[attr-defined]
        yield checked(member, length)


def _plain(raw: IO[bytes]) -> Stream:
    magic = raw.read(2)
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if magic == GZIP else raw
