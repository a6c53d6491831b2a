"""Any images in a folder: class folders, images alone, or images with a table (``shards.sources.layout``)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from diffbase.system_error import reading
from shards.schema import IMAGE_SUFFIXES
from shards.sources.base import AS_IT_IS, Asked, Contents, Sample, check_inside
from shards.sources.layout import Layout, Tree

ENTRIES_CAP = 3_000_000  # files and folders; links inside a folder could make any number
LEVELS_CAP = 64
LOOKS_LIKE = (
    "a folder of images, of class folders of them, or with a table of labels, or a zip, .tar or .tgz of it"
)


class ImageFolder:
    """A folder of images; hidden files are passed over, and counted in the notes.

    What is not clear is an InputError when the adapter is made. A damaged image is reported when it is
    packed.
    """

    kind = "imagefolder"
    forms: tuple[str, ...] = ("folder",)
    looks_like = LOOKS_LIKE
    crop: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        self.name = path.resolve().name
        self._path = path
        files, folders = walk(path, asked.labels)
        self._layout = Layout(Tree(self._where, files, folders, lambda table: reading(path / table)), asked)
        self.schema = self._layout.schema
        self.split_by = self._layout.split_by
        self.notes = self._layout.notes
        self.total: int | None = len(self._layout.images)
        self._read = 0

    @staticmethod
    def claims(contents: Contents) -> bool:
        """A folder with an image somewhere in it."""
        return has_images(contents)

    def digest(self) -> str:
        """Over the paths below the source, sizes and labels of the images: no image is read."""
        return self._layout.digest()

    def samples(self) -> Iterator[Sample]:
        """The samples in the order of the pack."""
        for number, one in enumerate(self._layout.images):
            self._read = number
            file = self._path / one.path
            yield Sample(one.key, str(file), file, one.size, one.labels, split=one.split)

    def fraction(self) -> float:
        """Share of the samples given so far."""
        return self._read / len(self._layout.images)

    def _where(self, path: PurePosixPath) -> str:
        return str(self._path / path)


def has_images(contents: Contents) -> bool:
    """Whether there is an image among the first files."""
    return any(file.suffix.lower() in IMAGE_SUFFIXES for file in contents.files)


def walk(path: Path, but: Path | None = None) -> tuple[dict[PurePosixPath, int], list[PurePosixPath]]:
    """Files with their bytes, and folders, below ``path``; without the file ``but``.

    Links are followed inside the folder. Of what is hidden nothing is looked at.
    """
    root, skip = path.resolve(), None if but is None else but.resolve()
    files: dict[PurePosixPath, int] = {}
    folders: list[PurePosixPath] = []
    waiting: list[tuple[Path, tuple[Path, ...]]] = [(path, (root,))]  # with all real folders above
    while waiting:
        folder, above = waiting.pop()
        for entry in folder.iterdir():
            below = PurePosixPath(entry.relative_to(path))
            if len(files) + len(folders) == ENTRIES_CAP:
                raise InputError(f"{path}: more than {ENTRIES_CAP} files and folders")
            if entry.name.startswith("."):
                files[below] = 0
                continue
            check_inside(entry, root)
            if entry.is_dir():
                real = entry.resolve()
                if real in above or len(above) == LEVELS_CAP:
                    raise InputError(
                        f"{entry}: a folder within itself, or more than {LEVELS_CAP} levels deep"
                    )
                folders.append(below)
                waiting.append((entry, (*above, real)))
            elif not entry.is_file():
                raise InputError(f"{entry}: not a plain file")
            elif skip is None or entry.name != skip.name or entry.resolve() != skip:
                files[below] = entry.stat().st_size
    return files, folders
