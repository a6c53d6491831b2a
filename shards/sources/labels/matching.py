"""The rows of one or several tables, each held against its image; their columns as labels of the images."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import IO

from diffbase.cli import InputError
from shards.sources.base import Asked
from shards.sources.labels.attributes import Labelled, as_shown, check_bins, labelled, no_column, some
from shards.sources.labels.columns import Column, LeftOut, text_of
from shards.sources.labels.names import AMBIGUOUS, Names
from shards.sources.labels.tables import Block, blocks

KEYS = (
    *("file_name", "filename", "file", "path", "file_path", "image", "image_name", "image_path", "img"),
    *("name", "id", "image_id", "key"),
)
"""What the column with the images' names is often called; the first one that names images is it."""
SPLIT = "split"
TRIED = 1000  # rows by which that column is found
CELLS_CAP = 1 << 27  # of all columns together; one takes four bytes, of many numbers eight


class Labels:
    """Tables of labels for ``images``, read one after the other.

    Strict, as Hugging Face's reader is: a row without an image, an image without a row and two rows for one
    are InputErrors.
    """

    def __init__(self, images: Sequence[PurePosixPath], asked: Asked) -> None:
        check_bins(asked.bins)
        self._images = images
        self._asked = as_shown(asked)
        self._tables: list[str] = []
        self._columns: dict[str, Column] = {}
        self._there: dict[str, None] = {}  # all columns besides those that name the images
        self._keys: set[str] = set()  # columns that name the images
        self._rows = 0
        self._row_of = array("i", [-1]) * len(images)
        self._lost: list[str] = []  # the first names of no image
        self._lost_count = 0

    def read(self, stream: IO[bytes], where: str, folder: PurePosixPath = PurePosixPath()) -> None:  # noqa: B008
        """Take in a table, called ``where`` in errors, whose paths begin at ``folder``."""
        below = {image: number for number, image in enumerate(self._images)}
        if folder.parts:
            below = {i.relative_to(folder): n for i, n in below.items() if i.is_relative_to(folder)}
        names, key = Names(below), None
        for block in blocks(stream, where):
            key = self._key(block, names, where) if key is None else key
            column = f"column {some([key])}"
            if key not in block:
                raise InputError(f"{where}: rows without the {column}, which names the images")
            for number, cell in enumerate(block[key], start=self._rows):
                self._place(number, text_of(cell), names, f"{where}: {column}")
            for name, cells in block.items():
                if name == key:
                    continue
                self._there[name] = None
                if self._asked.columns and not self._is_wanted(name):
                    continue
                if name not in self._columns:
                    self._columns[name] = Column(name, name in self._asked.columns)
                self._columns[name].add(cells, self._rows)
            self._rows += len(block[key])
            if self._rows * len(self._columns) > CELLS_CAP:
                raise InputError(f"{where}: more than {CELLS_CAP} cells; --columns takes fewer")
        assert key is not None  # a table without rows is refused
        self._keys.add(key)
        self._tables.append(where)

    def _is_wanted(self, name: str) -> bool:
        return name in self._asked.columns or name.lower() == SPLIT

    def _place(self, row: int, text: str | None, names: Names, where: str) -> None:
        number = names.find(text, where) if text else None
        if number is None:
            self._lost_count += 1
            if len(self._lost) < 3:
                self._lost.append("nothing" if text is None else repr(text)[:80])
        elif self._row_of[number] >= 0:
            raise InputError(f"{where}: two rows for {self._images[number]}; --key tells another column")
        else:
            self._row_of[number] = row

    def _key(self, block: Block, names: Names, where: str) -> str:
        """The column that names the images, by a table's first rows."""
        if (asked := self._asked.key) is not None:
            if asked not in block:
                raise InputError(f"{where}: --key: {no_column(asked, list(block))}")
            return asked

        def named(cells: Sequence[object]) -> int:
            found = {names.look_up(text) for cell in cells[:TRIED] if (text := text_of(cell))}
            return len(found - {None, AMBIGUOUS})

        shares = {name: named(cells) for name, cells in block.items()}
        best = [name for name, share in shares.items() if share and share == max(shares.values())]
        usual = [name for key in KEYS for name in best if name.lower().replace(" ", "_") == key]
        if not best:
            raise InputError(
                f"{where}: no column names the images (such as {self._images[0]}); there are: "
                f"{some(list(block))}; --key tells which"
            )
        if len(best) > 1 and not usual:
            raise InputError(f"{where}: several columns name the images: {some(best)}; --key tells which")
        return (usual or best)[0]

    def check(self) -> None:
        """InputError where rows and images do not fit, or a column is missing."""
        tables = _first(self._tables[:3], len(self._tables))
        told = []
        if self._lost_count:
            told.append(
                f"{_count(self._lost_count, 'row')} without an image ({_first(self._lost, self._lost_count)})"
            )
        bare = [str(i) for i, row in zip(self._images, self._row_of, strict=True) if row < 0]
        if bare:
            told.append(f"{_count(len(bare), 'image')} without a row ({_first(bare[:3], len(bare))})")
        if told:
            raise InputError(
                f"{tables}: {', '.join(told)}; allowed: one row for each image, "
                f"which column {some(sorted(self._keys))} names (--key tells another)"
            )
        for name in self._asked.columns:
            if name in self._keys:
                raise InputError(f"--columns: {name} names the images")
            if name not in self._there:
                raise InputError(f"{tables}: --columns: {no_column(name, list(self._there))}")

    def splits(self, allowed: Mapping[str, str]) -> list[str] | None:
        """The split of each image, where a column tells it; InputError for other values than ``allowed``."""
        name = next((n for n in self._columns if n.lower() == SPLIT and n not in self._asked.columns), None)
        if name is None:
            return None
        found = []
        where = f"{self._tables[0]}: column {name}"
        try:
            texts = self._columns.pop(name).texts(self._row_of)
        except LeftOut as error:
            raise InputError(
                f"{where}: no splits ({error}); --columns names those that are labels"
            ) from error
        for image, text in zip(self._images, texts, strict=True):
            split = allowed.get((text or "").lower())
            if split is None:
                raise InputError(
                    f"{where}: {image} is {'empty' if text is None else repr(text)}; allowed: "
                    f"{', '.join(allowed)}; --columns takes the column as a label"
                )
            found.append(split)
        return found

    def labelled(self, training: Sequence[bool]) -> Labelled:
        """The labels of the images; ``training`` says which of these are trained on."""
        told = f"labels from {some(self._tables)}, images named by {some(sorted(self._keys))}"
        found = labelled(self._columns, self._asked, self._row_of, training, self._tables[0])
        return replace(found, notes=(told, *found.notes))


def _first(names: Sequence[str], count: int) -> str:
    return ", ".join(names) + ", ..." * (count > len(names))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number > 1)}"
