"""The folder that an index is written into: for one process at a time, and over nobody's files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from diffbase.cli import InputError
from diffbase.locking.lock import Lock
from shards.header import FILE
from shards.packing.bad import FILE as BAD
from shards.packing.journal import JOURNAL
from shards.packing.plan import SPLITS

LOCK = ".index.lock"
"""There from the first moment to the last. After a stop it stays beside what was written, which is known by
it as ours. It is not the packer's journal: the folder may be one of other people's tars, and where a journal
is, a pack writes over shards."""
WRITTEN = (
    FILE,
    BAD,
    *(f"{split}-{what}.npy" for split in SPLITS for what in ("samples", "shards", "blocks")),
)


@contextmanager
def output(out: Path) -> Iterator[None]:
    """The folder ``out``, made if need be, while an index is written into it.

    InputError where something would be written over, or another process writes there. What was made for
    nothing goes.
    """
    if (out / JOURNAL).exists():
        raise InputError(f"--out {out}: shards.pack has begun to pack there; choose another --out")
    path = out / LOCK
    if not path.exists() and (there := _there(out)):
        raise InputError(f"--out {out}: would write over {there[0]}; remove it, or choose another --out")
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    with Lock(path) as lock:
        if not lock.take():
            raise InputError(f"--out {out}: another shards.index is writing there{lock.holder()}")
        if lock.is_removed():  # it ended between our open and our lock
            lock.close(remove=True)
            raise InputError(f"--out {out}: another shards.index has just ended there; run this one again")
        try:
            yield
        except BaseException:
            if not _there(out):
                path.unlink(missing_ok=True)
                lock.close(remove=True)
                with suppress(OSError):  # someone may have put a file there meanwhile
                    for folder in made:
                        folder.rmdir()
            raise
        path.unlink(missing_ok=True)
        lock.close(remove=True)


def _there(out: Path) -> list[str]:
    return [name for name in WRITTEN if os.path.lexists(out / name)]
