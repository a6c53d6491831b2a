"""An archive of a folder of images, as ``shards.sources.layout`` understands such a folder.

It is read twice: names, sizes and tables of labels, then the images, as bytes. A zip's come in the folder's
order, a tar's in its own. What all files lie in is looked through: a folder ``set/`` is no class.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from diffbase.cli import InputError
from diffbase.system_error import reading
from shards.sources.archive import Archive, File, damage, files
from shards.sources.base import AS_IT_IS, IMAGE_CAP, Asked, Contents, Sample, check_size, is_hidden
from shards.sources.imagefolder import LOOKS_LIKE, has_images
from shards.sources.layout import METADATA, SPLIT_NAMES, Layout, Placed, Tree
from shards.sources.zip_members import MAGIC as ZIP

FILES_CAP = 1_000_000
TABLES_CAP = 256 << 20  # bytes of all tables of labels together


class ImageArchive(Archive):
    """A zip, a tar or a gzipped tar of images."""

    kind = "imagefolder"
    looks_like = LOOKS_LIKE
    crop: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        self.path, self.name = path, path.resolve().name
        self._size = path.stat().st_size
        sizes: dict[PurePosixPath, int] = {}
        tables: dict[PurePosixPath, bytes] = {}
        with damage(path), reading(path) as raw:
            self._is_zip = raw.read(4) in ZIP
            raw.seek(0)
            for file in files(path, raw):
                if len(sizes) == FILES_CAP:
                    raise InputError(f"{path}: more than {FILES_CAP} files; unpack it and pack the folder")
                if file.path in sizes:
                    raise InputError(f"{file.where}: appears twice")
                sizes[file.path] = file.size
                if file.path.name in METADATA and not is_hidden(file.path):
                    check_size(file.where, file.size, TABLES_CAP - sum(map(len, tables.values())))
                    tables[file.path] = file.read()
        self._top = _top(sizes, asked.depth)

        def opened(table: PurePosixPath) -> IO[bytes]:
            return io.BytesIO(tables[self._top / table])

        self._layout = Layout(
            Tree(self._where, {self._below(p): size for p, size in sizes.items()}, (), opened), asked
        )
        self.schema = self._layout.schema
        self.split_by = self._layout.split_by
        self.notes = self._layout.notes
        self.total = len(self._layout.images)
        self._read = 0

    @staticmethod
    def claims(contents: Contents) -> bool:
        """An archive with an image among its first files."""
        return has_images(contents)

    def digest(self) -> str:
        """Over the archive's bytes, and the labels and splits that are taken from it."""
        return hashlib.sha256(f"{super().digest()} {self._layout.digest()}".encode()).hexdigest()

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / len(self._layout.images)

    def _samples(self) -> Iterator[Sample]:
        changed = InputError(f"{self.path}: changed while it was read; run the same command again")
        self._read = 0
        with reading(self.path) as raw:
            for one, file in self._in_order(raw):
                if file.size != one.size:
                    raise changed
                self._read += 1
                data = file.read() if one.size <= IMAGE_CAP else b""
                yield Sample(one.key, file.where, data, one.size, one.labels, split=one.split)
        if self._read != self.total:
            raise changed

    def _in_order(self, raw: IO[bytes]) -> Iterator[tuple[Placed, File]]:
        if self._is_zip:
            by_path = {self._below(file.path): file for file in files(self.path, raw)}
            yield from ((one, by_path[one.path]) for one in self._layout.images if one.path in by_path)
        else:
            placed = {one.path: one for one in self._layout.images}
            found = ((placed.get(self._below(file.path)), file) for file in files(self.path, raw))
            yield from ((one, file) for one, file in found if one is not None)

    def _below(self, path: PurePosixPath) -> PurePosixPath:
        return path.relative_to(self._top) if path.is_relative_to(self._top) else path

    def _where(self, path: PurePosixPath) -> str:
        return f"{self.path}: {self._top / path}" if path.parts else str(self.path)


def _top(paths: Iterable[PurePosixPath], depth: int | None) -> PurePosixPath:
    """The folder in which all that is not hidden lies, unless it is a split, or needed for a class."""
    deepest, tops = 0, set()
    for path in paths:
        if not is_hidden(path):
            deepest = max(deepest, len(path.parts) - 1)
            tops.add(path.parts[0] if len(path.parts) > 1 else "")
    top = tops.pop() if len(tops) == 1 else ""
    needed = top.lower() in SPLIT_NAMES or (depth is not None and deepest <= depth)
    return PurePosixPath("" if needed else top)
