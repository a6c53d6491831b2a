"""Google's Cartoon Set in its three forms.

- A flat folder (cartoonset10k) and a folder with the sub-folders 0 to 9 (cartoonset100k), in natural order
  of the keys: cs2 before cs10, whatever the sub-folder.
- The official ``.tgz`` (or ``.tar``), streamed, in the archive's own order: a sample comes when its second
  half has been seen. The halves may lie apart; the waiting ones are kept in memory, up to ``PENDING_CAP``
  bytes of images and ``HALVES_CAP`` of the rest.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from diffbase.system_error import is_there, read_bytes
from shards.schema import CARTOON_SET
from shards.sources.archive import SUFFIXES, Archive
from shards.sources.base import (
    AS_IT_IS,
    IMAGE_CAP,
    Asked,
    Sample,
    check_inside,
    check_size,
    checked_key,
    describe,
    natural,
)
from shards.sources.cartoon_csv import parse_csv, parse_csv_text
from shards.sources.tar_members import Stream
from shards.sources.variant_names import CAP as NAMES_CAP
from shards.sources.variant_names import FILE as NAMES
from shards.sources.variant_names import named

CSV_CAP = 64 << 10  # bytes of one CSV; a real one has about 500
PENDING_CAP = 640 << 20  # bytes of images in an archive that wait for their CSV
HALVES_CAP = 128 << 20  # bytes of the names and labels of all that waits
HALF = 2048  # of them, what one costs besides its name, in objects of Python
SAMPLES_CAP = 1_000_000  # in an archive; Cartoon Set has 100,000

LOOKS_LIKE = "a folder of csX.png and csX.csv pairs, flat or in sub-folders 0 to 9, or their .tgz or .tar"


class CartoonFolder:
    """Cartoon Set as files: ``csX.png`` beside ``csX.csv``, flat or in sub-folders 0 to 9.

    Every CSV is read when the adapter is made, so that a bad label is reported before any image is packed.
    Files that are neither .png nor .csv (a render.json, a licence) and hidden ones are passed over.
    """

    kind = "cartoonset"
    looks_like = LOOKS_LIKE
    schema = CARTOON_SET
    split_by = "key"
    notes: tuple[str, ...] = ()
    crop: int | None = 360  # as the data set's first users did

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        self.name = path.resolve().name
        files: dict[str, dict[str, Path]] = {".png": {}, ".csv": {}}
        root = path.resolve()
        if is_there(marker := path / NAMES):
            check_inside(marker, root)
            self.schema = named(read_bytes(marker, NAMES_CAP + 1), str(marker))
        for folder in [path, *(path / str(digit) for digit in range(10) if (path / str(digit)).is_dir())]:
            check_inside(folder, root)
            for file in folder.iterdir():
                if file.suffix not in files or file.name.startswith("."):
                    continue
                check_inside(file, root)
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
            raise InputError(f"{path}: no csX.png and csX.csv in it ({describe(path)})")

        self._files: list[tuple[str, Path, int, tuple[int, ...]]] = []
        for key in sorted(images, key=natural):
            image, table = images[key], tables[key]
            if image.parent != table.parent:
                raise InputError(f"{image}: its {key}.csv lies in {table.parent}")
            size = image.stat().st_size
            check_size(str(image), size, IMAGE_CAP)
            check_size(str(table), table.stat().st_size, CSV_CAP)
            self._files.append((key, image, size, tuple(parse_csv(table).values())))
        self.total: int | None = len(self._files)
        self._read = 0

    @staticmethod
    def claims(path: Path) -> bool:
        """A folder with a .csv in it or in one of its sub-folders 0 to 9."""
        folders = [path, *(path / str(digit) for digit in range(10))]
        return any(
            entry.suffix == ".csv" for folder in folders if folder.is_dir() for entry in folder.iterdir()
        )

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
    """Cartoon Set as the official ``.tgz`` or a ``.tar``."""

    kind = "cartoonset"
    looks_like = LOOKS_LIKE
    schema = CARTOON_SET
    crop: int | None = CartoonFolder.crop

    @staticmethod
    def claims(path: Path) -> bool:
        """A file whose name ends in .tgz, .tar.gz or .tar."""
        return path.is_file() and path.name.endswith(SUFFIXES)

    def _samples(self, stream: Stream) -> Iterator[Sample]:
        images: dict[str, bytes] = {}  # the halves that wait, by path without suffix
        tables: dict[str, dict[str, int]] = {}
        seen: set[str] = set()
        waiting = halves = 0
        for path, where, size in self._members(stream, _wanted):
            half, place = path.suffix, str(path.with_suffix(""))
            key = checked_key(path.stem, where)
            if len(seen) == SAMPLES_CAP:
                raise InputError(
                    f"{where}: more than {SAMPLES_CAP} samples; unpack the archive and pack the folder"
                )
            if key in seen or place in (images if half == ".png" else tables):
                raise InputError(f"{where}: {key} appears twice; keys must be unique")
            check_size(where, size, IMAGE_CAP if half == ".png" else CSV_CAP)
            data = stream.read(size)
            if len(data) != size:
                raise InputError(f"{where}: the archive ends inside it")
            if half == ".png":
                images[place] = data
                waiting += len(data)
            else:
                tables[place] = parse_csv_text(_text(data, where), where)

            whole = place in images and place in tables
            halves += (HALF + 4 * len(place)) * (-1 if whole else 1)
            if whole:
                data = images.pop(place)
                waiting -= len(data)
                seen.add(key)
                yield Sample(key, f"{self.path}: {place}.png", data, len(data), tables.pop(place))
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
        for place in sorted(images)[:1]:
            raise InputError(f"{self.path}: {place}.png: has no .csv in the archive")
        for place in sorted(tables)[:1]:
            raise InputError(f"{self.path}: {place}.csv: has no .png in the archive")
        if not seen:
            raise InputError(f"{self.path}: no csX.png and csX.csv in it")


def _wanted(path: PurePosixPath) -> bool:
    return path.suffix in (".png", ".csv") and not path.name.startswith(".")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text file ({error.reason})") from error
