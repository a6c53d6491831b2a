"""From a tree of image files to samples: labels, splits and keys, whether it is a folder or an archive.

- Class folders give one attribute, ``class``, whose variants are the folders in natural order of their names
  (2 before 10, so folders named by numbers keep them); with ``--depth`` they are nested, and a class
  is called ``a/b``. Images alone give an empty schema: images without a condition.
- A table of labels (``metadata.csv``, ``.jsonl`` or ``.parquet`` in the tree, or ``--labels``) gives an
  attribute a column (shards.sources.labels); the folders' names are no labels then, as for Hugging Face.
- ``train/``, ``val/`` and ``test/`` at the top are splits, and so is the table's column ``split``. Without
  ``val`` it is cut from ``train`` as usual.

A key depends on the file's own path only, so adding data renames nothing: the file's stem, in folders
``class__stem``. Where that is no plain key (other characters than letters, digits, ``_`` and ``-``, more than
80, a folder's name with ``__`` in it or ``_`` at its end, a ``_`` at the beginning), the others become ``-``,
and a hash of the path below the source follows, which keeps ``a b.png`` and ``a-b.png`` apart.

Images without labels are packed in natural order of the keys; others in the order of a hash of the keys, so
that a reader which shuffles within a buffer only still meets every class all the time.
"""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import PurePosixPath
from typing import IO

from diffbase.cli import InputError
from diffbase.system_error import reading
from shards.schema import IMAGE_SUFFIXES, NAME_CAP, VARIANTS_CAP, Attribute
from shards.sources.base import AS_IT_IS, KEY, Asked, natural
from shards.sources.labels.matching import Labels

SPLIT_NAMES = {
    "train": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
}
"""What a split may be called, in any case."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Hugging Face's names of the tables that lie among the images."""
LAYOUT = "allowed: class folders that hold images, images alone, or images with a table of labels"
DEPTH_CAP = 16
ROOT = PurePosixPath()


@dataclass(frozen=True)
class Tree:
    """What lies in a folder or archive; every path is relative to it.

    A hidden folder may stand among ``files`` for all that is in it.
    """

    where: Callable[[PurePosixPath], str]
    """A path as errors name it."""
    files: Mapping[PurePosixPath, int]
    """All files and their bytes, hidden ones too."""
    folders: Iterable[PurePosixPath]
    """As far as they are known; an empty one is an error among class folders."""
    opened: Callable[[PurePosixPath], IO[bytes]]
    """A file of ``files``, to read and seek in."""


@dataclass(frozen=True, slots=True)
class Placed:
    """One image of the tree; ``split`` as of Sample."""

    path: PurePosixPath
    size: int
    key: str
    split: str | None
    number: int
    variants: Mapping[str, Sequence[int]]  # of all images, by attribute: a dict an image would be large

    @property
    def labels(self) -> dict[str, int]:
        """As of Sample."""
        return {name: variants[self.number] for name, variants in self.variants.items()}


class Layout:
    """What a tree means: ``schema``, ``split_by``, ``notes`` as of a Source, ``images`` as they are packed.

    Anything that is not clear is an InputError: a file that is no image by its name, an empty class folder,
    images beside class folders, folders inside class folders, a table that does not fit its images. No image
    is read.
    """

    def __init__(self, tree: Tree, asked: Asked = AS_IT_IS) -> None:
        self.schema: tuple[Attribute, ...] = ()
        self.notes: tuple[str, ...] = ()
        self._tree, self._asked = tree, asked
        files = {path: size for path, size in tree.files.items() if _hidden(path) is None}
        folders = {path for path in tree.folders if _hidden(path) is None}
        folders |= {parent for path in files for parent in path.parents} - {ROOT}
        self._note_hidden()
        sizes = {path: size for path, size in files.items() if path.suffix.lower() in IMAGE_SUFFIXES}
        tables = sorted(path for path in files if path.name in METADATA)
        for path in sorted(files.keys() - sizes.keys() - set(tables), key=_natural):
            raise InputError(
                f"{tree.where(path)}: not an image by its name; allowed: {', '.join(IMAGE_SUFFIXES)}, and a "
                f"table ({', '.join(METADATA)}, or --labels)"
            )
        if not sizes:
            raise InputError(f"{tree.where(ROOT)}: no images in it; {LAYOUT}")
        images = sorted(sizes, key=_natural)
        tabled = bool(tables) or asked.labels is not None
        if not tabled:
            asked.only("imagefolder without a table of labels", "depth")

        split_folders = _split_folders({f.parts[0] for f in folders}, tree)
        splits: list[str | None] = [split_folders.get(path.parts[0]) for path in images]
        variants: dict[str, Sequence[int]]
        if tabled:
            asked.only("imagefolder with a table of labels", "labels", "columns", "key", "bins")
            splits, variants = self._read_tables(tables, images, splits)
            if any(len(path.parts) > 1 + bool(split_folders) for path in images):
                self._note("the folders' names are no labels where a table is")
        else:
            variants = self._classes(images, folders, split_folders, asked.depth)
        self.split_by = "source" if any(splits) else "key"
        if "val" not in splits:
            # The packer cuts it from the training samples by a hash of their keys.
            splits = [None if split == "train" else split for split in splits]
        self._beyond_paths = tabled or self.split_by == "source" or asked.depth is not None

        found: dict[str, Placed] = {}
        for number, (path, split) in enumerate(zip(images, splits, strict=True)):
            key = key_of(path, any_depth=tabled)
            placed = Placed(path, sizes[path], key, split, number, variants)
            other = found.setdefault(placed.key, placed)
            if other is not placed:
                raise InputError(
                    f"{tree.where(path)}: has the same key as {other.path.name}; keys must be unique"
                )
        order = _scattered if self.schema else natural
        self.images = [found[key] for key in sorted(found, key=order)]

    def _read_tables(
        self, tables: Sequence[PurePosixPath], images: Sequence[PurePosixPath], folders: Sequence[str | None]
    ) -> tuple[list[str | None], dict[str, Sequence[int]]]:
        """The images' splits, those of the ``folders`` or of a column, and their labels; sets the schema."""
        labels, tree, given = Labels(images, self._asked), self._tree, self._asked.labels
        if given is not None:
            with reading(given) as stream:
                labels.read(stream, str(given))
            if tables:
                self._note(f"{tables[0]} passed over: --labels has the labels")
        else:
            beside = next((one for one, other in pairwise(tables) if one.parent == other.parent), None)
            if beside is not None:
                raise InputError(
                    f"{tree.where(beside.parent)}: two tables of labels; allowed: one in a folder"
                )
            for table in tables:
                with tree.opened(table) as stream:
                    labels.read(stream, tree.where(table), table.parent)
        labels.check()
        told = labels.splits(SPLIT_NAMES)
        splits: list[str | None] = list(folders if told is None else told)
        for image, folder, split in zip(images, folders, splits, strict=True):
            if folder not in (None, split):
                raise InputError(
                    f"{tree.where(image)}: in a folder of the split {folder}; its row says {split}"
                )
        if told is not None and "train" not in told:
            raise InputError(f"{tree.where(ROOT)}: by the table's splits there is nothing to train on")
        labelled = labels.labelled([split in (None, "train") for split in splits])
        self.schema, self.notes = labelled.schema, (*self.notes, *labelled.notes)
        return splits, labelled.variants

    def digest(self) -> str:
        """Over the paths and sizes of the images, their labels and splits: no image is read."""
        digest = hashlib.sha256()
        for one in self.images:
            digest.update(os.fsencode(f"{one.path}\0{one.size}\n"))
        if self._beyond_paths:
            digest.update(repr([(a.name, a.names) for a in self.schema]).encode("utf-8", "surrogatepass"))
            digest.update(repr([(one.split, one.labels) for one in self.images]).encode())
        return digest.hexdigest()

    def _note(self, line: str) -> None:
        self.notes = (*self.notes, line)

    def _note_hidden(self) -> None:
        hidden = {_hidden(path) for path in self._tree.files} - {None}
        if hidden:
            self._note(f"{len(hidden)} hidden file{'s' * (len(hidden) > 1)} or folders passed over")

    def _classes(
        self,
        images: Iterable[PurePosixPath],
        folders: set[PurePosixPath],
        split_folders: Mapping[str, str],
        depth: int | None,
    ) -> dict[str, Sequence[int]]:
        """The labels that the folders' names give; sets the schema."""
        where, top, levels = self._tree.where, bool(split_folders), 1 if depth is None else depth
        if not 1 <= levels <= DEPTH_CAP:
            raise InputError(f"--depth {depth}: allowed: 1 to {DEPTH_CAP}")
        inner = {path: path.parts[top:-1] for path in images}
        classed = any(inner.values()) or depth is not None
        deepest = top + levels * classed
        for folder in sorted(folders, key=_natural):
            if len(folder.parts) <= top:
                continue
            if not classed or len(folder.parts) > deepest:
                beside = next((path for path, names in inner.items() if not names), None)
                if beside is not None:
                    raise self._mixed(beside, folder)
                raise InputError(
                    f"{where(folder)}: a folder inside a class folder; --depth {levels + 1} takes one more "
                    f"level; {LAYOUT}"
                )
        for path in sorted(inner, key=_natural):
            if classed and not inner[path]:
                beside = next((f for f in sorted(folders, key=_natural) if len(f.parts) > top), None)
                if beside is None:
                    raise InputError(f"--depth {depth}: {where(ROOT)} has images, and no class folders")
                raise self._mixed(path, beside)
            if classed and len(inner[path]) < levels:
                raise InputError(
                    f"{where(path)}: at level {len(inner[path])} of the class folders; --depth {levels}: "
                    f"images lie at level {levels}"
                )
        holders = {parent for path in inner for parent in path.parents}
        for folder in sorted(folders - holders, key=_natural):
            raise InputError(
                f"{where(folder)}: an empty {'class folder' if len(folder.parts) > top else 'folder'}"
            )
        if not classed:
            return {}
        names = sorted({"/".join(parts) for parts in inner.values()}, key=natural)
        if len(names) > VARIANTS_CAP:
            raise InputError(f"{where(ROOT)}: {len(names)} class folders; at most {VARIANTS_CAP} are allowed")
        for name in names:
            if not name.isprintable():
                raise InputError(f"{where(ROOT)}: a class folder's name cannot be printed ({name!r})")
            if len(name) > NAME_CAP:
                raise InputError(f"{where(ROOT)}: a class of more than {NAME_CAP} characters ({name:.40}...)")
        self.schema = (Attribute("class", len(names), tuple(names)),)
        numbers = {name: number for number, name in enumerate(names)}
        return {"class": array("i", (numbers["/".join(parts)] for parts in inner.values()))}

    def _mixed(self, image: PurePosixPath, folder: PurePosixPath) -> InputError:
        return InputError(
            f"{self._tree.where(image.parent)}: mixed: {image.name} lies beside {folder.name}/; {LAYOUT}"
        )


def key_of(path: PurePosixPath, any_depth: bool = False) -> str:
    """The key of the file at ``path`` below the source; see the module's text.

    Two files never share one but where their names differ in the suffix of images only, if all lie equally
    deep, or if keys are made for ``any_depth``.
    """
    *folders, stem = (*path.parts[:-1], path.stem if path.suffix.lower() in IMAGE_SUFFIXES else path.name)
    plain = "__".join((*folders, stem))
    # The first __ then tell where the folders end, so two different files never share a key.
    injective = not any("__" in name or name.endswith("_") for name in folders)
    if injective and KEY.fullmatch(plain) and not (any_depth and "__" in stem):
        return plain
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:60].strip("-").lstrip("-_") or "image"
    return f"{readable}-{hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()}"


def _split_folders(tops: set[str], tree: Tree) -> dict[str, str]:
    """The split of each folder at the top, where these are splits; else nothing."""
    told = {top: SPLIT_NAMES[top.lower()] for top in sorted(tops) if top.lower() in SPLIT_NAMES}
    others = sorted(tops - told.keys())
    if len(told) < 2 and (others or "train" not in told.values()):
        return {}
    where = tree.where(ROOT)
    if others:
        raise InputError(
            f"{where}: the splits {', '.join(told)} lie beside {others[0]}/; allowed: splits alone, or none"
        )
    if len(set(told.values())) < len(told):
        raise InputError(f"{where}: two folders for one split ({', '.join(told)})")
    if "train" not in told.values():
        raise InputError(f"{where}: the splits {', '.join(told)} without train/: nothing to train on")
    for path in tree.files:
        if len(path.parts) == 1 and path.suffix.lower() in IMAGE_SUFFIXES and _hidden(path) is None:
            raise InputError(f"{where}: mixed: {path} lies beside the splits {', '.join(told)}")
    return told


def _hidden(path: PurePosixPath) -> PurePosixPath | None:
    """The file or folder by which ``path`` is hidden; None where it is not."""
    for level, name in enumerate(path.parts, start=1):
        # What macOS puts into zips beside the files.
        if name.startswith(".") or name == "__MACOSX":
            return PurePosixPath(*path.parts[:level])
    return None


def _natural(path: PurePosixPath) -> tuple[tuple[tuple[int, str], ...], ...]:
    return tuple(natural(name) for name in path.parts)


def _scattered(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"order").digest()
