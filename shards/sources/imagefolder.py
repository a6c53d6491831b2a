"""Any images in folders: one folder per class, or a single folder without labels.

Class folders give one attribute, ``class``, whose variants are the folders in natural order of their names
(2 before 10, so folders named by numbers keep them). A flat folder of images gives an empty schema: images
without a condition.

A key depends on the file's own name only, so adding data renames nothing: the file's stem, in a class folder
``class__stem``. Where that is no plain key (other characters than letters, digits, ``_`` and ``-``, more than
80, a class name with ``__`` in it or ``_`` at its end), the others become ``-``, and a hash of the path below
the source follows, which keeps ``a b.png`` and ``a-b.png`` apart.

A flat folder is packed in natural order of the keys; class folders in the order of a hash of the keys, so
that a reader which shuffles within a buffer only still meets every class all the time.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from diffbase.cli import InputError
from shards.schema import VARIANTS_CAP, Attribute
from shards.sources.base import AS_IT_IS, IMAGE_CAP, KEY, Asked, Sample, check_inside, check_size, natural

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LAYOUT = "allowed: class folders that hold images, or images alone"


class ImageFolder:
    """A folder of images or of class folders of images; hidden files are passed over.

    Anything else is an InputError when the adapter is made: a file that is no image by its name, an empty
    class folder, images beside class folders, folders inside class folders. A damaged image is reported
    when it is packed.
    """

    kind = "imagefolder"
    looks_like = "a folder of png, jpg or webp images or of class folders of them"
    crop: int | None = None
    split_by = "key"
    notes: tuple[str, ...] = ()

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        asked.only(self.kind)
        self.name = path.resolve().name
        entries, root = _visible(path), path.resolve()
        for entry in entries:
            check_inside(entry, root)
        folders, files = [e for e in entries if e.is_dir()], [e for e in entries if not e.is_dir()]
        if folders and files:
            raise InputError(f"{path}: mixed: {files[0].name} lies beside {folders[0].name}/; {LAYOUT}")
        classes = [folder.name for folder in folders]
        if len(classes) > VARIANTS_CAP:
            raise InputError(f"{path}: {len(classes)} class folders; at most {VARIANTS_CAP} are allowed")
        for name in classes:
            if not name.isprintable():
                raise InputError(f"{path}: a class folder's name cannot be printed ({name!r})")
        groups = [_visible(folder) for folder in folders] if folders else [files]
        found: dict[str, tuple[str, Path, int, dict[str, int]]] = {}
        for number, (group, folder) in enumerate(zip(groups, folders or [path], strict=True)):
            if not group:
                raise InputError(f"{folder}: {'an empty class folder' if folders else 'an empty folder'}")
            for file in group:
                check_inside(file, root)
                key, size = self._checked(file, folder if folders else None)
                other = found.setdefault(key, (key, file, size, {"class": number} if folders else {}))
                if other[1] is not file:
                    raise InputError(f"{file}: has the same key as {other[1].name}; keys must be unique")
        classed = Attribute("class", len(classes), tuple(classes))
        self.schema: tuple[Attribute, ...] = (classed,) if folders else ()
        order = _scattered if folders else natural
        self._files = [found[key] for key in sorted(found, key=order)]
        self._path = path
        self.total: int | None = len(self._files)
        self._read = 0

    @staticmethod
    def _checked(file: Path, folder: Path | None) -> tuple[str, int]:
        """Key and bytes of one image file, looked at from outside; workers decode it."""
        if file.is_dir():
            raise InputError(f"{file}: a folder inside a class folder; {LAYOUT}")
        if file.suffix.lower() not in SUFFIXES:
            raise InputError(f"{file}: not an image by its name; allowed: {', '.join(SUFFIXES)}")
        if not file.is_file():
            raise InputError(f"{file}: not a plain file")
        size = file.stat().st_size
        check_size(str(file), size, IMAGE_CAP)
        return key_of(file.name, folder.name if folder else None), size

    @staticmethod
    def claims(path: Path) -> bool:
        """A folder with an image in it or in one of its sub-folders."""
        return path.is_dir() and any(
            file.suffix.lower() in SUFFIXES
            for entry in _visible(path)
            for file in (entry.iterdir() if entry.is_dir() else [entry])
        )

    def digest(self) -> str:
        """Over the paths below the source and the sizes of the images: no image is read."""
        lines = (os.fsencode(f"{f.relative_to(self._path)}\0{size}\n") for _, f, size, _ in self._files)
        return hashlib.sha256(b"".join(lines)).hexdigest()

    def samples(self) -> Iterator[Sample]:
        """The samples in the order of the pack; see the module's text."""
        for number, (key, file, size, labels) in enumerate(self._files):
            self._read = number
            yield Sample(key, str(file), file, size, labels)

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / len(self._files)


def key_of(name: str, group: str | None) -> str:
    """The key of the file ``name`` in the class folder ``group``; see the module's text."""
    stem = Path(name).stem
    if group is None:
        plain, injective = stem, True
    else:
        # The first __ then tells where the class ends, so two different files never share a key.
        plain, injective = f"{group}__{stem}", "__" not in group and not group.endswith("_")
    if injective and KEY.fullmatch(plain):
        return plain
    readable = re.sub(r"[^A-Za-z0-9_]+", "-", plain)[:60].strip("-") or "image"
    path = os.fsencode(name if group is None else f"{group}/{name}")
    return f"{readable}-{hashlib.blake2b(path, digest_size=8).hexdigest()}"


def _scattered(key: str) -> bytes:
    return hashlib.blake2b(key.encode(), digest_size=16, person=b"order").digest()


def _visible(folder: Path) -> list[Path]:
    return sorted(
        (entry for entry in folder.iterdir() if not entry.name.startswith(".")), key=lambda e: natural(e.name)
    )
