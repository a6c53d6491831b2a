"""Hugging Face parquet: a column of images, the other columns their labels; a file, or a folder of them.

An image is a struct of ``bytes`` and ``path``, as ``datasets`` writes it, or bytes alone. The other columns
become attributes as a table's do (shards.sources.labels), those of the type ClassLabel with its names and
numbers. ``train-00000-of-00002.parquet`` tells the split, or a column ``split``. The images come in the order
of the files and rows, some at a time. Needs pyarrow, the extra ``tables``, once there is such a file.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from diffbase.cli import InputError
from diffbase.system_error import reading, sha256_of
from shards.sources.base import (
    AS_IT_IS,
    IMAGE_CAP,
    Asked,
    Contents,
    Sample,
    describe,
    natural,
    passed_over,
)
from shards.sources.imagefolder import has_images, walk
from shards.sources.labels.attributes import as_shown, check_bins, labelled, no_column, some
from shards.sources.labels.columns import ClassColumn, Column, LeftOut, shown, text_of
from shards.sources.labels.parquet import (
    cells_of,
    check_unpacked,
    faults,
    is_plain,
    open_parquet,
    parquet_blocks,
)
from shards.sources.layout import METADATA, SPLIT_NAMES, key_of
from shards.sources.tars.places import splits

ROWS, IMAGES = 4096, 16  # rows read at a time, of labels and of images
ROWS_CAP = 100_000_000
SPLIT = "split"


class ParquetImages:
    """Images and labels in parquet files. All labels are read when the adapter is made, no image is."""

    kind = "parquet"
    forms: tuple[str, ...] = ("parquet", "folder")
    looks_like = "Hugging Face parquet with a column of images: a file or a folder of them"
    crop: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind, "columns", "bins", "key", "image_field")
        check_bins(asked.bins)
        self.name, self._asked = path.resolve().name, as_shown(asked)
        self._files, self.notes = _files(path)
        self._names = _names(path, self._files)
        self._paths: list[str | None] = []  # what names each image
        self._columns: dict[str, Column] = {}
        self._there: dict[str, None] = {}  # all columns besides the images
        self._images: list[str] = []  # the image column of each file
        self._counts: list[int] = []
        for file in self._files:
            self._read_labels(file)
        total = sum(self._counts)
        for name in self._asked.columns:
            if name == self._asked.key:
                raise InputError(f"--columns: {name} names the images")
            if name not in self._columns:
                raise InputError(f"{path}: --columns: {no_column(name, list(self._there))}")

        self._splits = self._told_splits(total)
        self.split_by = "source" if any(self._splits) else "key"
        if "val" not in self._splits:
            # It is cut from the training samples by a hash of their keys.
            self._splits = [None if split == "train" else split for split in self._splits]
        training = [split in (None, "train") for split in self._splits]
        found = labelled(self._columns, self._asked, range(total), training, str(self._files[0]))
        self.schema, self._variants, self.notes = found.schema, found.variants, (*self.notes, *found.notes)
        self._keys = self._named()
        self.total: int | None = total
        self._read = 0

    @staticmethod
    def claims(contents: Contents) -> bool:
        """A parquet file, or a folder of some without images beside them."""
        tables = [file for file in contents.files if file.suffix == ".parquet" and file.name not in METADATA]
        return contents.form == "parquet" or (bool(tables) and not has_images(contents))

    def digest(self) -> str:
        """Over all bytes of the files, and the labels and splits that are taken from them."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{sha256_of(file)}\n".encode())
        digest.update(repr([(a.name, a.names) for a in self.schema]).encode("utf-8", "surrogatepass"))
        for variants in self._variants.values():
            digest.update(repr(list(variants)).encode())
        digest.update(repr((self._keys, self._splits)).encode())
        return digest.hexdigest()

    def samples(self) -> Iterator[Sample]:
        """The samples, row by row."""
        self._read = 0
        for file, column in zip(self._files, self._images, strict=True):
            for number, (data, size) in enumerate(_images(file, column)):
                where = f"{file}: row {number}"
                at, self._read = self._read, self._read + 1
                if at == self.total:
                    break
                labels = {name: variants[at] for name, variants in self._variants.items()}
                yield Sample(self._keys[at], where, data, size, labels, split=self._splits[at])
        if self._read != self.total:
            raise InputError(f"{self._files[0]}: changed while it was read; run the same command again")

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / (self.total or 1)

    def _read_labels(self, path: Path) -> None:
        """Take in the labels of one file, and what names its images."""
        before, where, key = sum(self._counts), str(path), self._asked.key
        with reading(path) as stream:
            file = open_parquet(stream, where)
            image = _image_column(file.schema_arrow, self._asked.image_field, where)
            classes = _class_names(file.schema_arrow)
            has_path = key is None and _has_path(file.schema_arrow.field(image).type)
            names = [shown(name) for name in file.schema_arrow.names]
            self._there |= dict.fromkeys(name for name in names if name != shown(image))
            if key is not None and key not in names:
                raise InputError(f"{where}: --key: {no_column(key, names)}")
            rows = 0
            stream.seek(0)
            for block in parquet_blocks(stream, where, ROWS):
                for name, cells in block.items():
                    if name == key:
                        self._paths.extend(map(text_of, cells))
                    elif name != shown(image) and self._is_wanted(name):
                        self._add(name, classes.get(name, ()), cells, before + rows, where)
                rows += len(next(iter(block.values()), ()))
                if before + rows > ROWS_CAP:
                    raise InputError(f"{where}: more than {ROWS_CAP} rows")
            if not rows:
                raise InputError(f"{where}: a table without rows")
            if has_path:
                stream.seek(0)
                self._paths.extend(_image_paths(stream, where, image))
            self._paths.extend([None] * (before + rows - len(self._paths)))
        self._images.append(image)
        self._counts.append(rows)

    def _is_wanted(self, name: str) -> bool:
        return not self._asked.columns or name in self._asked.columns or name.lower() == SPLIT

    def _add(
        self, name: str, classes: tuple[str, ...], cells: Sequence[object], before: int, where: str
    ) -> None:
        """Take in cells of a column; of a ClassLabel the ``classes`` are its variants' names."""
        if name not in self._columns:
            named = name in self._asked.columns
            self._columns[name] = ClassColumn(name, classes) if classes else Column(name, named)
        column = self._columns[name]
        if column.class_names != classes:
            both = classes and column.class_names
            told = "other classes than in the files before" if both else "with class names in some files only"
            raise InputError(f"{where}: column {name}: {told}")
        try:
            column.add(cells, before)
        except LeftOut as error:
            raise InputError(f"{where}: column {name}: {error}") from error

    def _told_splits(self, total: int) -> list[str | None]:
        """The split of each row: by the files' names, else by a column that is not asked for as a label."""
        name = next((n for n in self._columns if n.lower() == SPLIT and n not in self._asked.columns), None)
        column = None if name is None else self._columns.pop(name)
        of_file = splits(self._files)
        if any(of_file):
            if column is not None:
                self.notes = (*self.notes, f"left out: {name}: the files' names tell the splits")
            return [split for split, count in zip(of_file, self._counts, strict=True) for _ in range(count)]
        if column is None:
            return [None] * total
        where = f"{self._files[0]}: column {name}"
        try:
            texts = column.texts(range(total))
        except LeftOut as error:
            raise InputError(
                f"{where}: no splits ({error}); --columns names those that are labels"
            ) from error
        found = [SPLIT_NAMES.get((text or "").lower()) for text in texts]
        if None in found:
            text = texts[found.index(None)]
            raise InputError(
                f"{where}: {'an empty cell' if text is None else repr(text)[:40]}; allowed: "
                f"{', '.join(SPLIT_NAMES)}; --columns takes the column as a label"
            )
        if "train" not in found:
            raise InputError(f"{where}: nothing to train on")
        return found

    def _named(self) -> list[str]:
        """The keys: by what names each image, where every one has another name, else by file and row."""
        keys = [key_of(PurePosixPath(path), any_depth=True) for path in self._paths if path]
        if len(keys) == len(self._paths) == len(set(keys)):
            return keys
        if self._asked.key is not None:
            twice = next((key for key, count in Counter(keys).items() if count > 1), None)
            reason = f"two images are called {twice}" if twice else "an image without a name"
            raise InputError(f"{self._files[0]}: --key {self._asked.key}: {reason}; keys must be unique")
        return [
            key_of(name / f"{number:07d}")
            for name, count in zip(self._names, self._counts, strict=True)
            for number in range(count)
        ]


def _files(path: Path) -> tuple[list[Path], tuple[str, ...]]:
    """The parquet files at ``path`` in natural order, and a line about the others."""
    if path.is_file():
        return [path], ()
    found, _ = walk(path)
    files = [below for below in found if below.suffix == ".parquet" and not below.name.startswith(".")]
    if not files:
        raise InputError(f"{path}: no parquet in it ({describe(path)})")
    others = Counter(below.name for below in found.keys() - set(files))
    return [path / file for file in sorted(files, key=lambda file: natural(str(file)))], passed_over(others)


def _names(path: Path, files: Sequence[Path]) -> list[PurePosixPath]:
    """What the keys of rows begin with: the files' own names where no two are alike, else their paths."""
    stems = [PurePosixPath(file.stem) for file in files]
    if len(set(stems)) == len(stems):
        return stems
    return [PurePosixPath(file.relative_to(path).with_suffix("")) for file in files]


def _image_column(schema: Any, asked: str | None, where: str) -> str:
    """The column with the images, by what Hugging Face's features say, or its type."""
    from pyarrow import types

    def is_bytes(kind: Any) -> bool:
        return bool(types.is_binary(kind) or types.is_large_binary(kind))

    def has_bytes(kind: Any) -> bool:
        inner = [kind.field(n) for n in range(kind.num_fields)] if types.is_struct(kind) else []
        return any(field.name == "bytes" and is_bytes(field.type) for field in inner)

    names = [field.name for field in schema if is_bytes(field.type) or has_bytes(field.type)]
    told = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    for some_of_them in (
        [name for name in names if shown(name) == asked] if asked else [],
        [] if asked else [name for name in names if name in told],
        [] if asked else [field.name for field in schema if has_bytes(field.type)],
        [] if asked else names,
    ):
        if len(some_of_them) == 1:
            return str(some_of_them[0])
    there = some(list(map(shown, names)))
    if asked or names:
        wrong = (
            f"--image-field {asked}: none of its columns of images" if asked else "several columns of images"
        )
        raise InputError(f"{where}: {wrong} ({there or 'it has none'}); --image-field chooses one")
    raise InputError(f"{where}: no column of images; there are: {some(list(map(shown, schema.names)))}")


def _features(schema: Any) -> dict[str, dict[str, Any]]:
    """What Hugging Face's ``datasets`` wrote of the columns; nothing where that is not to be understood."""
    with suppress(ValueError, RecursionError, KeyError, TypeError):
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: feature for name, feature in found.items() if isinstance(feature, dict)}
    return {}


def _class_names(schema: Any) -> dict[str, tuple[str, ...]]:
    """The names of the variants of each column of the type ClassLabel."""
    from pyarrow import types

    found = {}
    for name, feature in _features(schema).items():
        names = feature.get("names")
        if feature.get("_type") != "ClassLabel" or name not in schema.names or not isinstance(names, list):
            continue
        words = tuple(shown(str(word))[:255] for word in names)
        if types.is_integer(schema.field(name).type) and 0 < len(set(words)) == len(words) and all(words):
            found[shown(name)] = words
    return found


def _has_path(kind: Any) -> bool:
    """Whether images of that type of arrow bring their paths."""
    from pyarrow import types

    return types.is_struct(kind) and kind.get_field_index("path") >= 0 and is_plain(kind.field("path").type)


def _image_paths(stream: Any, where: str, column: str) -> Iterator[str | None]:
    with faults(where):
        file = open_parquet(stream, where)
        for batch in file.iter_batches(ROWS, columns=[f"{column}.path"], use_threads=False):
            batch.validate(full=True)
            # By name: a dotted one also chooses a column at the top that is called so.
            yield from map(text_of, cells_of(batch.column(column).field("path")))


def _images(path: Path, column: str) -> Iterator[tuple[bytes, int]]:
    """The images of a file and their sizes, bytes; no bytes of a row without any, or of one too large."""
    from pyarrow import types

    where = str(path)
    with reading(path) as stream, faults(where):
        file = open_parquet(stream, where, buffer_size=1 << 20)  # not a whole group of rows at once
        nested = types.is_struct(file.schema_arrow.field(column).type)
        leaf = f"{column}.bytes" if nested else column
        check_unpacked(file.metadata, where)
        for batch in file.iter_batches(IMAGES, columns=[leaf], use_threads=False):
            batch.validate(full=True)
            cells = batch.column(column).field("bytes") if nested else batch.column(column)
            for cell in cells:
                size = len(cell.as_buffer()) if cell.is_valid else 0
                yield cell.as_py() if 0 < size <= IMAGE_CAP else b"", size
