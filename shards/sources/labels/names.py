"""Which image a cell of a table names: by its path, with or without suffix, or by the end of it."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import PurePosixPath

from diffbase.cli import InputError

AMBIGUOUS = -1
TEXT_CAP, LEVELS_CAP = 4096, 64  # characters and folders of a path


class Names:
    """The images below one folder by all names that a table may call them."""

    def __init__(self, images: Mapping[PurePosixPath, int]) -> None:
        """``images``: the number of each by its path below the folder."""
        self._images = images

    def find(self, text: str, where: str) -> int | None:
        """The number of the image that ``text`` names; None for none. InputError where it names several.

        An image ``b/1.png`` is ``b/1.png``, ``b/1``, what ends in these (``a/b/1.png``), or where no other
        image is called so ``1.png`` or ``1``. A path with ``..`` names none.
        """
        found = self.look_up(text)
        if found == AMBIGUOUS:
            raise InputError(f"{where}: {text!r:.80} names several images; allowed: their paths")
        return found

    def look_up(self, text: str) -> int | None:
        """The same, and AMBIGUOUS for several images."""
        found = self._paths.get(text)
        return self._find(unicodedata.normalize("NFC", text.replace("\\", "/"))) if found is None else found

    def _find(self, text: str) -> int | None:
        if len(text) > TEXT_CAP or text.count("/") > LEVELS_CAP:
            return None
        parts = [part for part in text.split("/") if part not in ("", ".")]
        if ".." in parts:  # it leads elsewhere: what follows is no end of a path below the folder
            return None
        for first in range(len(parts)):
            path = "/".join(parts[first:])
            for names in (self._paths, self._bare_paths):
                if (found := names.get(path)) is not None:
                    return found
        if len(parts) != 1:
            return None
        return self._names.get(parts[0], self._stems.get(parts[0]))

    @cached_property
    def _paths(self) -> dict[str, int]:
        return self._by(str)

    @cached_property
    def _bare_paths(self) -> dict[str, int]:
        return self._by(lambda path: str(path.with_suffix("")))

    @cached_property
    def _names(self) -> dict[str, int]:
        return self._by(lambda path: path.name)

    @cached_property
    def _stems(self) -> dict[str, int]:
        return self._by(lambda path: path.stem)

    def _by(self, name: Callable[[PurePosixPath], str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for path, number in self._images.items():
            text = unicodedata.normalize("NFC", name(path))
            found[text] = number if found.setdefault(text, number) == number else AMBIGUOUS
        return found
