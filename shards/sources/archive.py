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
from typing import IO, Self

from diffbase.cli import InputError
from shards.sources.base import Sample

SUFFIXES = (".tgz", ".tar.gz", ".tar")
DAMAGE = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile)
Stream = IO[bytes] | gzip.GzipFile


class _Member(tarfile.TarInfo):
    """A tar header that is whole: tarfile takes a damaged or missing one for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            member = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if buf == bytes(512):  # the zero block that closes an archive
                raise
            raise tarfile.ReadError(str(error)) from error
        # Long names and the like come as members of their own, which tarfile reads whole into memory.
        if member.type not in (*tarfile.SUPPORTED_TYPES, *_EXTENSIONS) or member.size < 0:
            raise tarfile.ReadError("a member of unknown type")
        if member.type in _EXTENSIONS and member.size > 1 << 20:
            raise tarfile.ReadError("an extended header of more than 1 MiB")
        return member


_EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


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
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                # TarFile keeps every member that it has met; on a stream that is only a leak.
                archive.members = []  # type: ignore[attr-defined]
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
        tarfile.open(fileobj=_plain(raw), mode="r|", tarinfo=_Member) as archive,
    ):
        for member in archive:
            name = PurePosixPath(member.name)
            if member.isfile() and not name.name.startswith("."):
                return name
    return None


def _plain(raw: IO[bytes]) -> Stream:
    magic = raw.read(2)
    raw.seek(0)
    return gzip.GzipFile(fileobj=raw) if magic == b"\x1f\x8b" else raw
