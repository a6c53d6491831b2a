"""Google's Cartoon Set as files or as an archive.

- A folder (cartoonset10k) or one with sub-folders (cartoonset100k has 0 to 9), in natural order of the keys:
  cs2 before cs10, whatever the sub-folder.
- The official ``.tgz``, or any tar or zip of the files, streamed, in the archive's own order: a sample comes
  when its second half has been seen. The halves may lie apart; the waiting ones are kept in memory, up to
  ``PENDING_CAP`` bytes of images and ``HALVES_CAP`` of the rest.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from diffbase.system_error import read_bytes, reading
from shards.schema import CARTOON_SET, IMAGE_SUFFIXES, Attribute
from shards.sources.archive import Archive, damage, files
from shards.sources.base import (
    AS_IT_IS,
    IMAGE_CAP,
    NAMES_CAP,
    Asked,
    Contents,
    Sample,
    check_size,
    checked_key,
    describe,
    is_hidden,
    natural,
    passed_over,
)
from shards.sources.cartoon_csv import is_cartoon, parse_csv, parse_csv_bytes
from shards.sources.imagefolder import walk
from shards.sources.zip_members import MAGIC as ZIP

CSV_CAP = 64 << 10  # bytes of one CSV; a real one has about 500
PENDING_CAP = 640 << 20  # bytes of images in an archive that wait for their CSV
HALVES_CAP = 128 << 20  # bytes of the names and labels of all that waits
HALF = 2048  # of them, what one costs besides its name, in objects of Python
NAMES = "render.json"  # of the stand-in, which names its variants: shards.sources.variant_names
SAMPLES_CAP = 1_000_000  # in an archive; Cartoon Set has 100,000

LOOKS_LIKE = "Cartoon Set: csX.png and csX.csv pairs in a folder or in folders in it, or a .tgz, .tar or zip"


class CartoonFolder:
    """Cartoon Set as files: ``csX.png`` beside ``csX.csv``, in one folder or in sub-folders.

    Every CSV is read when the adapter is made, so that a bad label is reported before any image is packed.
    Whatever is an image or a CSV by its name is to be half of a pair; other files and hidden ones are counted
    in the notes.
    """

    kind = "cartoonset"
    forms: tuple[str, ...] = ("folder",)
    looks_like = LOOKS_LIKE
    schema = CARTOON_SET
    split_by = "key"
    crop: int | None = 360  # as the data set's first users did

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        self.name = path.resolve().name
        halves: dict[str, dict[str, Path]] = {"image": {}, "table": {}}
        others: Counter[str] = Counter()
        sizes: dict[Path, int] = {}
        found, _ = walk(path)
        for below, size in found.items():
            half, file = _half(below), path / below
            if str(below) == NAMES:
                self.schema = _schema(read_bytes(file, NAMES_CAP + 1), str(file))
            elif half is None:
                others[below.name] += 1
            if half is None:
                continue
            sizes[file] = size
            other = halves[half].setdefault(checked_key(file.stem, str(file)), file)
            if other is not file:
                raise InputError(f"{file}: {file.stem} is in {other.parent} too; keys must be unique")
        images, tables = halves["image"], halves["table"]
        for key in sorted(images.keys() ^ tables.keys(), key=natural)[:1]:
            if key in images:
                raise InputError(f"{images[key]}: has no {key}.csv beside it")
            raise InputError(f"{tables[key]}: has no {key}.png beside it")
        if not images:
            raise InputError(f"{path}: no csX.png and csX.csv in it ({describe(path)})")
        self.notes = passed_over(others)

        self._files: list[tuple[str, Path, int, tuple[int, ...]]] = []
        for key in sorted(images, key=natural):
            image, table = images[key], tables[key]
            if image.parent != table.parent:
                raise InputError(f"{image}: its {key}.csv lies in {table.parent}")
            check_size(str(table), sizes[table], CSV_CAP)
            self._files.append((key, image, sizes[image], tuple(parse_csv(table).values())))
        self.total: int | None = len(self._files)
        self._read = 0

    @staticmethod
    def claims(contents: Contents) -> bool:
        """A CSV of Cartoon Set's form beside images."""
        return _claims(contents)

    def digest(self) -> str:
        """Over keys, sizes of the images and labels: an edited label is seen, no image is read."""
        lines = (f"{key} {size} {values}\n" for key, _, size, values in self._files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def samples(self) -> Iterator[Sample]:
        """The samples in natural order of their keys."""
        names = [attribute.name for attribute in self.schema]
        for number, (key, image, size, values) in enumerate(self._files):
            self._read = number
            yield Sample(key, str(image), image, size, dict(zip(names, values, strict=True)))

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / len(self._files)


class CartoonArchive(Archive):
    """Cartoon Set as the official ``.tgz``, a tar or a zip."""

    kind = "cartoonset"
    looks_like = LOOKS_LIKE
    schema = CARTOON_SET
    crop: int | None = CartoonFolder.crop

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        super().__init__(path, asked)
        self._names: PurePosixPath | None = None
        with damage(path), reading(path) as raw:
            zipped = raw.read(4) in ZIP
            raw.seek(0)
            # A zip's directory tells all files; of a tar only the first is not behind images.
            some = files(path, raw) if zipped else islice(files(path, raw, NAMES_CAP), 1)
            told = (file for file in some if file.path.name == NAMES)
            top = min(told, key=lambda file: len(file.path.parts), default=None)
            if top is not None:
                check_size(top.where, top.size, NAMES_CAP)
                self.schema, self._names = _schema(top.read(), top.where), top.path

    @staticmethod
    def claims(contents: Contents) -> bool:
        """A CSV of Cartoon Set's form among the first files."""
        return _claims(contents)

    def _samples(self) -> Iterator[Sample]:
        # The halves that wait, by path without suffix, each with its name for errors.
        images: dict[str, tuple[str, bytes]] = {}
        tables: dict[str, tuple[str, dict[str, int]]] = {}
        seen: set[str] = set()
        waiting = halves = 0
        for file in self._files(lambda path: _half(path) is not None or path == self._names):
            path, where = file.path, file.where
            if path == self._names:
                continue
            half, place = _half(path), str(path.with_suffix(""))
            key = checked_key(path.stem, where)
            if len(seen) == SAMPLES_CAP:
                raise InputError(
                    f"{where}: more than {SAMPLES_CAP} samples; unpack the archive and pack the folder"
                )
            if key in seen or place in (images if half == "image" else tables):
                raise InputError(f"{where}: {key} appears twice; keys must be unique")
            check_size(where, file.size, IMAGE_CAP if half == "image" else CSV_CAP)
            data = file.read()
            if half == "image":
                images[place] = where, data
                waiting += len(data)
            else:
                tables[place] = where, parse_csv_bytes(data, where)

            whole = place in images and place in tables
            halves += (HALF + 4 * len(place)) * (-1 if whole else 1)
            if whole:
                (where, data), (_, labels) = images.pop(place), tables.pop(place)
                waiting -= len(data)
                seen.add(key)
                yield Sample(key, where, data, len(data), labels)
            elif waiting > PENDING_CAP or halves > HALVES_CAP:
                what = (
                    f"{PENDING_CAP >> 20} MiB of images"
                    if waiting > PENDING_CAP
                    else f"{HALVES_CAP // HALF} files"
                )
                raise InputError(
                    f"{where}: more than {what} wait for their CSV or image; "
                    "unpack the archive and pack the folder"
                )
        for where, _ in islice(images.values(), 1):
            raise InputError(f"{where}: has no .csv in the archive")
        for where, _ in islice(tables.values(), 1):
            raise InputError(f"{where}: has no .png in the archive")
        if not seen:
            raise InputError(f"{self.path}: no csX.png and csX.csv in it")


def _half(path: PurePosixPath) -> str | None:
    """Which half of a pair a file is by its name; None for neither."""
    suffix = path.suffix.lower()
    half = "image" if suffix in IMAGE_SUFFIXES else "table" if suffix == ".csv" else None
    return None if is_hidden(path) else half


def _claims(contents: Contents) -> bool:
    return any(map(is_cartoon, contents.tables.values()))


def _schema(data: bytes, where: str) -> tuple[Attribute, ...]:
    """The schema with the names of variants that a file tells; InputError names ``where``."""
    from shards.sources.variant_names import named  # pydantic: --help does without

    return named(data, where)
