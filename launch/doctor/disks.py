"""Free space where runs, temporary files and cached shards are written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from launch.doctor.finding import Finding, bad, ok, warn
from launch.supervise.preflight import room

FULL_GB = 0.1
"""Less than this is full: a checkpoint of the smallest model does not fit."""


def disk(name: str, folder: Path, low_gb: float, todo: str) -> Iterator[Finding]:
    """Whether files can be written in ``folder``, or where it would be made, and how much is free there."""
    there = next(path for path in (folder, *folder.parents, Path()) if path.exists())
    where = str(folder) if there == folder else f"{folder} (not there yet)"
    if problem := room(there, 0, "cannot write in"):
        yield bad(name, problem, todo)
        return
    free = shutil.disk_usage(there).free / 1e9
    found = f"{where}: {free:.1f} GB free"
    if free < FULL_GB:
        yield bad(name, found, todo)
    elif free < low_gb:
        yield warn(name, f"{found}, {low_gb:g} GB or more are advised", todo)
    else:
        yield ok(name, found)


def temporary_folder() -> Path:
    """Where temporary files go first. tempfile's own answer is another folder when this one is full."""
    return Path(os.environ.get("TMPDIR") or "/tmp")
