"""The points of a sweep: runs of their own below the sweep's folder, as its submission lists them."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from diffbase.cli import InputError
from diffbase.system_error import NO_FILE, read_bytes
from launch.follow.run import Run

FILE = "sweep.txt"
LARGEST = 16 << 20
_LINE = re.compile(r"(\d{3,4}) (.*)")


@dataclass(frozen=True)
class Point:
    """``folder``: its run's; ``values``: what of the config the sweep set, in words."""

    folder: Path
    values: str

    @property
    def name(self) -> str:
        """Its number, as a name."""
        return self.folder.name


@dataclass(frozen=True)
class Unreadable:
    """A run whose folder does not say what became of it: it has its row, with the reason."""

    job: str
    cluster: str
    folder: Path
    why: str


def points(run: Run) -> list[Point]:
    """The points of the sweep that was submitted last in this folder; none if that was no sweep."""
    if not run.job or "_" in run.job:  # by hand, or a point, whose output lies in the sweep's folder
        return []
    data = b""
    with suppress(*NO_FILE, PermissionError):  # a group does not read one with credentials
        data = read_bytes(run.logs / FILE, LARGEST)
    lines = map(_LINE.fullmatch, data.decode(errors="replace").splitlines())
    return [Point(run.folder / found[1], found[2]) for found in lines if found]


def read(folder: Path, job: str = "", cluster: str = "") -> Run | Unreadable:
    """A run, or why it cannot be read; ``job`` and ``cluster``: what is known of it from elsewhere."""
    try:
        return Run.read(folder)
    except OSError as error:
        return Unreadable(job, cluster, folder, error.strerror or str(error))
    except InputError as error:
        return Unreadable(job, cluster, folder, str(error))
