"""Folders that a submission makes, and takes back where it is refused."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.job.folder import JOBS


@contextmanager
def undone_if_refused(runs: Sequence[Path]) -> Iterator[list[Path]]:
    """Around making the job's folders in ``runs`` and submitting. Yields a list, for what is made there.

    Where the block ends in an error, all of that is removed, and of the folders above it those that were not
    there before, if nothing else has been put into them.
    """
    above = dict.fromkeys(folder for run in runs for folder in (run / JOBS, run, *run.parents))
    missing = [folder for folder in above if not os.path.lexists(folder)]
    made: list[Path] = []
    try:
        yield made
    except Exception:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        for folder in sorted(missing, key=lambda path: len(path.parts), reverse=True):
            with suppress(OSError):  # it is not empty, or was never made
                folder.rmdir()
        raise
