"""Where torch keeps what it compiles, and loads it from: code, in a folder of one's own.

torch's choice, /tmp/torchinductor_NAME, belongs to whoever made it first. Importing DeepSpeed is enough for
torch to use it. And torch takes code from there whatever processor it was written for, though what was made
with AVX2 does not compile without: each kind of processor has a folder.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from diffbase.cli import InputError
from diffbase.trust import own_folder

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"


def name() -> str:
    """The folder's: diffcore-inductor-UID-PROCESSOR, the last a hash of what the processor can do."""
    with contextlib.suppress(OSError), Path("/proc/cpuinfo").open("rb") as file:
        able = next((line for line in file if line.startswith((b"flags", b"Features"))), b"")
        kind = able + os.environ.get("ATEN_CPU_CAPABILITY", "").encode()  # by which torch does without some
        return f"diffcore-inductor-{os.geteuid()}-{hashlib.blake2b(kind, digest_size=4).hexdigest()}"
    return f"diffcore-inductor-{os.geteuid()}"


def choose() -> None:
    """Before torch does: ``name`` in /tmp, or a new one where somebody else took that name.

    A folder that $TORCHINDUCTOR_CACHE_DIR names stays: ``check`` says whose it is.
    """
    if VARIABLE in os.environ:
        return
    folder = Path(tempfile.gettempdir()) / name()
    try:
        own_folder(folder, code=True)
    except (InputError, OSError):
        folder = Path(tempfile.mkdtemp(prefix=f"{folder.name}-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ[VARIABLE] = str(folder)


def check() -> Path:
    """The folder, made where it is missing. InputError for one that others could change."""
    choose()
    try:
        return own_folder(Path(os.environ[VARIABLE]), code=True)
    except InputError as error:
        raise InputError(f"engine.compile: {error}; ${VARIABLE} names another folder") from error
