"""Where samples come from: one adapter a kind of source, in the dict ``SOURCES``.

An adapter is a class over one path. It knows its label schema and yields samples, lazily and always in
the same order: image bytes (or the path to read them from, so that workers read in parallel) and labels.

``cartoonset`` takes three forms of Google's Cartoon Set:

- a flat folder (cartoonset10k) and a folder with the sub-folders 0 to 9 (cartoonset100k), in natural
  order of the keys: cs2 before cs10, whatever the sub-folder;
- the official ``.tgz`` (or ``.tar``), streamed and never unpacked to disk, in the archive's own order: a
  sample comes when its second half has been seen. The halves may lie apart; the waiting ones are kept in
  memory, up to ``PENDING_CAP`` bytes.

Imports neither torch nor numpy.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, Self

from shards.attributes import CARTOON_SET, Attribute, parse_csv, parse_csv_text
from shards.cli import InputError

IMAGE_CAP = 32 << 20  # bytes of one source image; a real avatar has about 50 KB
CSV_CAP = 64 << 10  # bytes of one CSV; a real one has about 500
PENDING_CAP = 1 << 30  # bytes of images in an archive that wait for their CSV

# WebDataset splits a member's name at its first dot, and a plain tar header holds names of 100 bytes.
_KEY = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")


@dataclass(frozen=True, slots=True)
class Sample:
    """One source sample. ``where`` names it in errors; ``labels`` maps attribute to variant."""

    key: str
    where: str
    image: bytes | Path
    image_bytes: int
    labels: dict[str, int]

    def read_image(self) -> bytes:
        """The encoded image; an unreadable file raises OSError, which names it."""
        return self.image if isinstance(self.image, bytes) else self.image.read_bytes()


class Source(Protocol):
    """What the packer needs of an adapter."""

    kind: str
    name: str  # the last part of the path only: an index never tells where a machine keeps its data
    schema: tuple[Attribute, ...]
    total: int | None  # samples, where known before reading

    def __init__(self, path: Path) -> None: ...

    @staticmethod
    def claims(path: Path) -> bool:
        """Whether ``path`` looks like this kind of source."""

    def digest(self) -> str:
        """Hex digest by which a source is known again; reads no image of a folder."""

    def samples(self) -> Iterator[Sample]:
        """Every sample once, in a fixed order; InputError names the first bad one."""

    def fraction(self) -> float:
        """Share of the source read so far, 0 to 1: the progress bar's estimate where total is None."""


def detect(path: Path, kind: str | None = None) -> Source:
    """The adapter for ``path``, found out by itself or named by ``kind``; InputError where none fits."""
    if kind is not None and kind not in SOURCES:
        raise InputError(f"--kind {kind}: unknown; allowed: {', '.join(SOURCES)}")
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    for name in SOURCES if kind is None else [kind]:
        for adapter in SOURCES[name]:
            if adapter.claims(path):
                return adapter(path)
    raise InputError(
        f"{path}: not a source that can be packed ({_describe(path)}); allowed: a folder of csX.png and "
        "csX.csv pairs, flat or in sub-folders 0 to 9, or their .tgz or .tar (kind cartoonset)"
    )


def _describe(path: Path) -> str:
    if not path.is_dir():
        return "a file" if path.is_file() else "neither a file nor a folder"
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return f"found {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "an empty folder"


def natural(key: str) -> tuple[tuple[int, str], ...]:
    """Sort key by which cs2 comes before cs10; ties of value (cs1, cs01) fall back to the text."""
    parts = re.split(r"([0-9]+)", key)
    # Odd parts are the numbers: compared by length, then as text, they need no big integers.
    numbers = [(len(p.lstrip("0")), p.lstrip("0")) if i % 2 else (0, p) for i, p in enumerate(parts)]
    return (*numbers, (0, key))


def checked_key(stem: str, where: str) -> str:
    """``stem`` as a sample key; InputError unless it is plain (letters, digits, ``_``, ``-``; 80 at most)."""
    if not _KEY.fullmatch(stem):
        raise InputError(
            f"{where}: its name is no key; allowed: letters, digits, _ and -, at most 80, no dot"
        )
    return stem


class CartoonFolder:
    """Cartoon Set as files: ``csX.png`` beside ``csX.csv``, flat or in sub-folders 0 to 9.

    Every CSV is read when the adapter is made, so that a bad label is told before any image is packed.
    Files that are neither .png nor .csv (a render.json, a licence) and hidden ones are passed over.
    """

    kind = "cartoonset"
    schema = CARTOON_SET

    def __init__(self, path: Path) -> None:
        self.name = path.resolve().name
        files: dict[str, dict[str, Path]] = {".png": {}, ".csv": {}}
        for folder in [path, *(path / str(digit) for digit in range(10) if (path / str(digit)).is_dir())]:
            for file in folder.iterdir():
                if file.suffix not in files or file.name.startswith("."):
                    continue
                if not file.is_file():
                    raise InputError(f"{file}: not a plain file")
                other = files[file.suffix].setdefault(checked_key(file.stem, str(file)), file)
                if other is not file:
                    raise InputError(f"{file}: {file.stem} is in {other.parent} too; keys must be unique")
        images, tables = files[".png"], files[".csv"]
        for key in sorted(images.keys() ^ tables.keys(), key=natural)[:1]:
            if key in images:
                raise InputError(f"{images[key]}: has no {key}.csv beside it")
            raise InputError(f"{tables[key]}: has no {key}.png beside it")
        if not images:
            raise InputError(f"{path}: no csX.png and csX.csv in it ({_describe(path)})")

        self._files: list[tuple[str, Path, int, tuple[int, ...]]] = []
        for key in sorted(images, key=natural):
            image, table = images[key], tables[key]
            if image.parent != table.parent:
                raise InputError(f"{image}: its {key}.csv lies in {table.parent}")
            size = image.stat().st_size
            _check_size(str(image), size, IMAGE_CAP)
            _check_size(str(table), table.stat().st_size, CSV_CAP)
            self._files.append((key, image, size, tuple(parse_csv(table).values())))
        self.total: int | None = len(self._files)
        self._read = 0

    @staticmethod
    def claims(path: Path) -> bool:
        """A folder that holds a .png or .csv, or a sub-folder named by one digit."""
        return path.is_dir() and any(
            entry.suffix in (".png", ".csv") or re.fullmatch("[0-9]", entry.name) for entry in path.iterdir()
        )

    def digest(self) -> str:
        """Over keys, sizes of the images and labels: an edited label is seen, no image is read."""
        lines = (f"{key} {size} {values}\n" for key, _, size, values in self._files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def samples(self) -> Iterator[Sample]:
        names = [attribute.name for attribute in self.schema]
        for number, (key, image, size, values) in enumerate(self._files):
            self._read = number
            yield Sample(key, str(image), image, size, dict(zip(names, values, strict=True)))

    def fraction(self) -> float:
        return self._read / len(self._files)


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


class CartoonArchive:
    """Cartoon Set as the official ``.tgz`` or a ``.tar``, streamed: nothing is unpacked to disk.

    Names that are absolute or climb with ``..``, links and devices are refused, though nothing here would
    follow them: such an archive is not the data set.
    """

    kind = "cartoonset"
    schema = CARTOON_SET
    total: int | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.resolve().name
        self._size = path.stat().st_size
        self._raw: IO[bytes] | None = None

    @staticmethod
    def claims(path: Path) -> bool:
        """A file whose name ends in .tgz, .tar.gz or .tar."""
        return path.is_file() and path.name.endswith((".tgz", ".tar.gz", ".tar"))

    def digest(self) -> str:
        """SHA-256 of the archive file."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def fraction(self) -> float:
        return self._raw.tell() / self._size if self._raw is not None and not self._raw.closed else 1.0

    def samples(self) -> Iterator[Sample]:
        try:
            with self.path.open("rb") as raw:
                self._raw = raw
                magic = raw.read(2)
                raw.seek(0)
                if magic == b"\x1f\x8b":
                    with gzip.GzipFile(fileobj=raw) as stream:
                        yield from self._pairs(stream)
                        # tarfile stops at the end-of-archive blocks; gzip's own checksum comes after them.
                        while stream.read(1 << 20):
                            pass
                else:
                    yield from self._pairs(raw)
        except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{self.path}: truncated or damaged archive ({error})") from error

    def _pairs(self, stream: IO[bytes] | gzip.GzipFile) -> Iterator[Sample]:
        images: dict[str, bytes] = {}  # the halves that wait, by path without suffix
        tables: dict[str, dict[str, int]] = {}
        seen: set[str] = set()
        waiting = 0
        with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as archive:
            for member in archive:
                # TarFile keeps every member that it has met; on a stream that is only a leak.
                archive.members = []  # type: ignore[attr-defined]
                where = f"{self.path}: {member.name}"
                path = PurePosixPath(member.name)
                if path.is_absolute() or ".." in path.parts:
                    raise InputError(f"{where}: a name that leads out of the archive")
                if member.isdir() or (member.isfile() and not self._wanted(path)):
                    continue
                if not member.isfile():
                    raise InputError(f"{where}: a link or device; allowed: plain files and folders")

                half, place = path.suffix, str(path.with_suffix(""))
                key = checked_key(path.stem, where)
                if key in seen or place in (images if half == ".png" else tables):
                    raise InputError(f"{where}: {key} appears twice; keys must be unique")
                _check_size(where, member.size, IMAGE_CAP if half == ".png" else CSV_CAP)
                file = archive.extractfile(member)
                assert file is not None
                data = file.read()
                if len(data) != member.size:
                    raise InputError(f"{where}: the archive ends inside it")
                if half == ".png":
                    images[place] = data
                    waiting += len(data)
                else:
                    tables[place] = parse_csv_text(_text(data, where), where)

                if place in images and place in tables:
                    data = images.pop(place)
                    waiting -= len(data)
                    seen.add(key)
                    yield Sample(key, f"{self.path}: {place}.png", data, len(data), tables.pop(place))
                elif waiting > PENDING_CAP:
                    raise InputError(
                        f"{where}: more than {PENDING_CAP >> 20} MiB of images wait for their CSV; "
                        "unpack the archive and pack the folder"
                    )
        for place in sorted(images)[:1]:
            raise InputError(f"{self.path}: {place}.png: has no .csv in the archive")
        for place in sorted(tables)[:1]:
            raise InputError(f"{self.path}: {place}.csv: has no .png in the archive")
        if not seen:
            raise InputError(f"{self.path}: no csX.png and csX.csv in it")

    @staticmethod
    def _wanted(path: PurePosixPath) -> bool:
        return path.suffix in (".png", ".csv") and not path.name.startswith(".")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text file ({error.reason})") from error


def _check_size(where: str, size: int, cap: int) -> None:
    if size == 0:
        raise InputError(f"{where}: an empty file")
    if size > cap:
        raise InputError(f"{where}: {size} bytes; at most {cap} are allowed")


# The adapters of each kind; the first that claims a path takes it.
SOURCES: dict[str, tuple[type[Source], ...]] = {"cartoonset": (CartoonFolder, CartoonArchive)}
