"""What every adapter shares: the sample, what the packer asks of a source, keys and their order."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Protocol

from diffbase.cli import InputError
from diffbase.system_error import read_bytes
from shards.schema import Attribute

NAMES_CAP = 1 << 20  # bytes of a file with the names of variants
IMAGE_CAP = 32 << 20  # bytes of one source image; a real avatar has about 50 KB

# WebDataset splits a member's name at its first dot, and a plain tar header holds names of 100 bytes. Hugging
# Face's datasets drop a sample whose name begins with _ or a dot, without a word.
KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,79}")


@dataclass(frozen=True)
class Asked:
    """What a command line asks of a source besides its path; None and () leave it to the source."""

    labels: Path | None = None
    """A table of labels: csv, jsonl, parquet or a list of columns."""
    columns: tuple[str, ...] = ()
    """Its columns, or a tar's fields, that become attributes."""
    key: str | None = None
    """Its column with the images' names."""
    bins: int | None = None
    """How many quantiles a column of numbers becomes that has many values."""
    depth: int | None = None
    """Levels of class folders."""
    image_field: str | None = None
    """The endings of the members of a tar that are its samples' images."""

    def only(self, kind: str, *allowed: str) -> None:
        """InputError for what is asked of a source of ``kind`` that knows only the fields ``allowed``."""
        for one in fields(self):
            if one.name not in allowed and getattr(self, one.name) != one.default:
                raise InputError(f"--{one.name.replace('_', '-')}: not for a source of kind {kind}")


AS_IT_IS = Asked()
"""Nothing is asked."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One source sample. ``where`` names it in errors; ``labels`` maps attribute to variant or UNKNOWN.

    A file of no bytes, or of ``image_bytes`` beyond IMAGE_CAP, is a bad one for the packer to tell; of the
    latter a source need not give the bytes.
    """

    key: str
    where: str
    image: bytes | Path
    image_bytes: int
    labels: dict[str, int]
    planes: int = 0  # edge in pixels of an image given raw: its red, then green, then blue bytes; 0: a file
    split: str | None = None  # the one that the source puts it in; None: a hash of split_key decides
    split_key: str = ""  # "": the key; else the one it had before another sample had the same

    def read_image(self) -> bytes:
        """The encoded image; an unreadable file raises OSError, which names it, after some tries."""
        return self.image if isinstance(self.image, bytes) else read_bytes(self.image, IMAGE_CAP + 1)


FORMS = ("folder", "tar", "zip", "parquet")
"""What a path may be; a gzipped tar is a tar."""


@dataclass(frozen=True)
class Contents:
    """What lies in a folder, an archive or a file, as far as it takes to know what it is."""

    path: Path
    form: str
    files: Mapping[PurePosixPath, int]
    """The first files that are not hidden, and their bytes (0 in a folder)."""
    tables: Mapping[PurePosixPath, bytes]
    """The first few small files whose names end in .csv."""


class Source(Protocol):
    """What the packer needs of an adapter."""

    kind: str
    forms: tuple[str, ...]  # of FORMS: what a path of this kind may be
    looks_like: str  # what a path of this kind is, for people
    name: str  # the last part of the path only: an index never tells where a machine keeps its data
    schema: tuple[Attribute, ...]
    split_by: str  # source: it tells the splits; key: a hash of the keys decides
    notes: tuple[str, ...]  # lines about what was left out or passed over, for people
    crop: int | None  # edge of the usual centre crop, pixels; None: the shorter side of each image
    total: int | None  # samples, where known before reading

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None: ...

    @staticmethod
    def claims(contents: Contents) -> bool:
        """Whether ``contents``, of one of the ``forms``, look like this kind of source."""

    def digest(self) -> str:
        """Hex digest by which a source is known again; reads no image of a folder."""

    def samples(self) -> Iterator[Sample]:
        """Every sample once, in a fixed order; InputError names the first bad one."""

    def fraction(self) -> float:
        """Share of the source read so far, 0 to 1: the progress bar's estimate where total is None."""


def natural(key: str) -> tuple[tuple[int, str], ...]:
    """Sort key by which cs2 comes before cs10; ties of value (cs1, cs01) fall back to the text."""
    parts = re.split(r"([0-9]+)", key)
    # Odd parts are the numbers: compared by length, then as text, they need no big integers.
    numbers = [(len(p.lstrip("0")), p.lstrip("0")) if i % 2 else (0, p) for i, p in enumerate(parts)]
    return (*numbers, (0, key))


def checked_key(stem: str, where: str) -> str:
    """``stem`` as a sample key; InputError unless it is plain (letters, digits, ``_``, ``-``; 80 at most)."""
    if not KEY.fullmatch(stem):
        raise InputError(
            f"{where}: its name is no key; allowed: letters, digits, _ and -, at most 80, no dot, and "
            "no _ or - at its beginning"
        )
    return stem


def check_size(where: str, size: int, cap: int) -> None:
    """InputError for a file that is empty or larger than ``cap`` bytes."""
    if size == 0:
        raise InputError(f"{where}: an empty file")
    if size > cap:
        raise InputError(f"{where}: {size} bytes; at most {cap} are allowed")


def is_hidden(path: PurePosixPath) -> bool:
    """Whether a file is a hidden one, or in a hidden folder, or what macOS puts beside the files of a zip."""
    return any(name.startswith(".") or name == "__MACOSX" for name in path.parts)


def passed_over(others: Mapping[str, int]) -> tuple[str, ...]:
    """A line about ``others``, the files that are no part of the data set: how many have each name."""
    names = sorted(others)
    if not names:
        return ()
    some = f"{', '.join(name[:80] for name in names[:5])}{', ...' if len(names) > 5 else ''}"
    count = sum(others.values())
    return (f"{count} other file{'s' * (count > 1)} passed over ({some})",)


def check_inside(file: Path, root: Path) -> None:
    """InputError for a link that leads out of the source, whose folder is ``root``, links resolved.

    A folder from the net could otherwise have any file that its user may read packed into a data set.
    """
    if file.is_symlink():
        try:
            inside = file.resolve(strict=True).is_relative_to(root)
        except (OSError, RuntimeError) as error:  # of a circle of links
            raise InputError(f"{file}: a link that leads nowhere") from error
        if not inside:
            raise InputError(
                f"{file}: a link that leads out of {root}; pack a copy without links (cp -rL makes one)"
            )


def describe(path: Path) -> str:
    """The first names in a folder, for errors."""
    names = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    return f"found {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "an empty folder"
