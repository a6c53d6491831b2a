"""The faults; see the package's text."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

SHIM = Path(__file__).with_name("shim.c")
STRANGER = 65534
"""A user who is not root, and whom every machine has."""
NOBODY = 54321
"""A number without an entry in passwd; ``pwd.getpwuid`` fails for it."""
CALLS = ("open", "list", "read", "map", "write", "sync", "stat", "rename", "lock")


def fail(call: str, number: int, part: str = "-", *, after: int = 0, times: int | None = None) -> str:
    """Rule: ``call`` fails with ``number`` on ``part``, ``times`` times after ``after`` others."""
    assert call in CALLS
    return f"{call} {number} {part} after={after}" + ("" if times is None else f" times={times}")


def short(call: str, part: str = "-", *, after: int = 0, times: int | None = None) -> str:
    """Rule: reads or writes do half of what was asked."""
    return f"{call} short {part} after={after}" + ("" if times is None else f" times={times}")


def slow(call: str, seconds: float, part: str = "-") -> str:
    """Rule: every such call takes that much longer."""
    return f"{call} slow={seconds} {part}"


def clock(seconds: float) -> str:
    """Rule: the wall clock is so many seconds ahead."""
    return f"clock jump={seconds} -"


def why_not() -> str:
    """Why calls cannot be made to fail here; "" if they can."""
    return _built()[1]


@functools.cache
def _built() -> tuple[Path, str]:
    """The shim, and why there is none."""
    out = Path(tempfile.mkdtemp(prefix="faults-")) / "shim.so"
    atexit.register(shutil.rmtree, out.parent, ignore_errors=True)
    compiler = shutil.which("cc")
    if compiler is None:
        return out, "no C compiler (cc)"
    command = [compiler, "-O2", "-shared", "-fPIC", "-o", out, SHIM, "-ldl"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # a compiler without the C library's headers
        return out, f"cc cannot build the shim: {done.stderr.strip().splitlines()[0]}"
    out.parent.chmod(0o755)  # for commands of another user
    return out, ""


class Faults:
    """Rules for commands; ``folder`` gets the files that tell them."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0

    def env(self, *rules: str) -> dict[str, str]:
        """Variables under which a command, and all that it starts, meets the rules."""
        shim, why = _built()
        assert not why, why
        return {"LD_PRELOAD": str(shim), "FAULTS": str(self.file(*rules))}

    def file(self, *rules: str) -> Path:
        """The rules as a file. A process that began with ``env`` takes up another one's by ``take_up``."""
        self._count += 1
        path = self._folder / f"faults-{self._count}.txt"
        path.write_text("".join(f"{rule}\n" for rule in rules))
        path.chmod(0o644)
        return path


def take_up(path: Path) -> None:
    """From now on this process, which began with ``Faults.env``, meets the rules of ``Faults.file`` alone."""
    ctypes.CDLL(None).faults_load(os.fsencode(path))


@functools.cache
def can_mount() -> bool:
    """Whether ``tiny_disk`` works here: it needs root, and in a container the right to mount."""
    with tempfile.TemporaryDirectory() as folder, suppress(OSError), tiny_disk(Path(folder), 1):
        return True
    return False


@contextmanager
def tiny_disk(folder: Path, megabytes: float) -> Iterator[Path]:
    """A disk of that size at ``folder``. OSError where mounting is not permitted."""
    folder.mkdir(exist_ok=True)
    option = f"size={int(megabytes * 1024)}k,mode=755"
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", option, "tmpfs", folder], capture_output=True)
    if done.returncode:
        raise OSError(done.stderr.decode(errors="replace").strip())
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def few_descriptors(count: int) -> Any:
    """For ``preexec_fn``: no more than ``count`` open files."""
    return lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (count, count))


def low_memory(megabytes: int) -> Any:
    """For ``preexec_fn``: no more address space than that."""
    size = megabytes << 20
    return lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size))


def closed(command: Sequence[str], *streams: int) -> list[str]:
    """The command with these of its descriptors (1 output, 2 errors) closed."""
    return ["sh", "-c", 'exec "$@" ' + " ".join(f"{n}>&-" for n in streams), "sh", *command]


def without_home(env: dict[str, str]) -> dict[str, str]:
    """The environment of somebody without HOME; ``as_stranger(NOBODY)`` has no entry in passwd either."""
    gone = ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "USER", "LOGNAME")
    return {name: value for name, value in env.items() if name not in gone}


def as_stranger(number: int = STRANGER) -> dict[str, Any]:
    """For ``subprocess``: another user, without groups. Needs root."""
    return {"user": number, "group": number, "extra_groups": []}


def root() -> bool:
    """Whether this process may be other users and mount disks."""
    return os.geteuid() == 0
