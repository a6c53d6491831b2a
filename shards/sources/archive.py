"""Tar and zip archives as they come from the net, plain or gzipped, never unpacked to disk.

A gzipped one may hold a thousand times its size. Reading it then takes as much longer, but no more memory:
members are passed over in pieces, and what waits for something is counted.
"""

from __future__ import annotations

import gzip
import io
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from diffbase.cli import InputError
from diffbase.system_error import reading, sha256_of
from shards.sources.base import AS_IT_IS, Asked, Sample, passed_over
from shards.sources.tar_members import BadTar, Stream, members
from shards.sources.zip_members import DEFLATED, METHODS, BadZip, content, entries
from shards.sources.zip_members import MAGIC as ZIP

DAMAGE = (BadTar, BadZip, EOFError, zlib.error, gzip.BadGzipFile)
MEMBERS_CAP = 3_000_000  # of an archive; Cartoon Set's has 200,000
TAIL_CAP = 64 << 20  # bytes behind an archive's end; tar fills up its last record with at most a few MiB
GZIP = b"\x1f\x8b"
COMPRESSED = {
    GZIP: "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""How compressed files begin, and what they are called."""


@dataclass(frozen=True, slots=True)
class File:
    """A plain file in an archive: ``where`` names it in errors, ``start`` is its place in the archive.

    ``open`` gives its bytes, which are to be read before the next file is asked for. Of a zip's they are in
    memory then, so its size is to be checked before.
    """

    path: PurePosixPath
    where: str
    size: int
    start: int
    open: Callable[[], Stream]

    def read(self) -> bytes:
        """All its bytes; InputError where the archive ends before."""
        data = self.open().read(self.size)
        if len(data) != self.size:
            raise InputError(f"{self.where}: the archive ends inside it")
        return data


class Archive(ABC):
    """One archive file as a source: its digest, progress and files. A subclass says what these mean.

    Names that are absolute or climb with ``..``, links and devices are refused, though nothing here would
    follow them: such an archive is not the data set.
    """

    kind: str
    forms: tuple[str, ...] = ("tar", "zip")
    split_by = "key"
    total: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        self.path = path
        self.name = path.resolve().name
        self.notes: tuple[str, ...] = ()
        self._size = path.stat().st_size
        self._raw: IO[bytes] | None = None

    def digest(self) -> str:
        """SHA-256 of the archive file."""
        return sha256_of(self.path)

    def fraction(self) -> float:
        """Share of the archive's bytes read so far; 1 before and after reading."""
        return self._raw.tell() / self._size if self._raw is not None and not self._raw.closed else 1.0

    def samples(self) -> Iterator[Sample]:
        """The samples in the archive's order. InputError for a truncated or damaged archive."""
        with damage(self.path):
            yield from self._samples()

    @abstractmethod
    def _samples(self) -> Iterator[Sample]:
        """The samples of the whole archive, in its order."""

    def _files(self, wanted: Callable[[PurePosixPath], bool]) -> Iterator[File]:
        """Each ``wanted`` file; the others are counted in the notes once all have come."""
        others: Counter[str] = Counter()
        with reading(self.path) as raw:
            self._raw = raw
            for file in files(self.path, raw):
                if wanted(file.path):
                    yield file
                else:
                    others[file.path.name] += 1
        self.notes = passed_over(others)


@contextmanager
def damage(path: Path) -> Iterator[None]:
    """Around what reads an archive: InputError for one that is truncated or damaged."""
    try:
        yield
    except DAMAGE as error:
        raise InputError(f"{path}: truncated or damaged archive ({error})") from error


def files(path: Path, raw: IO[bytes], until: int | None = None) -> Iterator[File]:
    """The plain files of the archive ``path``, open as ``raw``, or those up to byte ``until``.

    Raises one of DAMAGE, and InputError for what does not belong into a data set.
    """
    head, size = raw.read(4), path.stat().st_size
    raw.seek(0)
    of_kind = _zipped(path, raw, size) if head in ZIP else _tarred(path, raw, size)
    for number, (name, kind, file) in enumerate(of_kind):
        if until is not None and file.start > until:
            return
        if number == MEMBERS_CAP:
            raise BadTar(f"more than {MEMBERS_CAP} members")
        if file.path.is_absolute() or ".." in file.path.parts:
            raise InputError(f"{file.where}: a name that leads out of the archive")
        if kind == "other":
            raise InputError(f"{file.where}: a link or device; allowed: plain files and folders")
        if kind == "file" and name:
            yield file


Found = Iterator[tuple[str, str, File]]  # name, kind, and the file where it is one


def _tarred(path: Path, raw: IO[bytes], size: int) -> Found:
    packed = raw.read(2) == GZIP
    raw.seek(0)
    stream = gzip.GzipFile(fileobj=raw) if packed else raw
    for member in members(stream, size * DEFLATED if packed else size):
        where = f"{path}: {member.name}"
        yield (
            member.name,
            member.kind,
            File(PurePosixPath(member.name), where, member.size, member.start, lambda: stream),
        )
    # Behind the archive's end there may be more zeros, and there is gzip's checksum.
    tail = 0
    while data := stream.read(1 << 20):
        tail += len(data)
        if tail > TAIL_CAP:
            raise BadTar(f"more than {TAIL_CAP >> 20} MiB behind its end")


def _zipped(path: Path, raw: IO[bytes], size: int) -> Found:
    with reading(path) as directory:  # read in turn with the members
        for entry in entries(directory, size):
            where = f"{path}: {entry.name}"
            if entry.kind == "file" and entry.encrypted:
                raise InputError(f"{where}: encrypted; allowed: zips without a password")
            if entry.kind == "file" and entry.method not in METHODS:
                raise InputError(
                    f"{where}: compressed by method {entry.method}; allowed: stored and deflated members"
                )
            yield (
                entry.name,
                entry.kind,
                File(
                    PurePosixPath(entry.name),
                    where,
                    entry.size,
                    entry.start,
                    lambda entry=entry: io.BytesIO(content(raw, entry)),  # type: ignore[misc]
                ),
            )
