"""The launchers above this process: when one is gone nobody watches the ranks any more, and they leave.

deepspeed's command starts a second process, and that one the ranks: the kernel tells a process of its own
parent's end at most. So each rank looks at all of them. A shell above is none of these: a run that was put
into the background goes on when its terminal closes.
"""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
MODULES = ("deepspeed.launcher", "torch.distributed", "accelerate")
PROGRAMS = ("deepspeed", "ds", "torchrun", "accelerate", "accelerate-launch")
"""What a launcher's command line names: a module after -m, or what such a name begins with; or a program."""

VALUED = re.compile(r"-[^cmWX]*([cmWX])(.*)", re.DOTALL)
"""Python's options that have a value, in the same word (-Xdev, -um module) or in the next one."""


class Process(NamedTuple):
    """A process by its number and the time of its start: numbers come again."""

    pid: int
    begun: str


def launchers(pid: int | None = None, proc: Path = PROC) -> list[Process]:
    """The processes right above ``pid`` (default: this one) that are launchers, from below."""
    found = list[Process]()
    above = _parent(os.getpid() if pid is None else pid, proc)
    while above > 1 and _is_launcher(above, proc) and (begun := _begun(above, proc)):
        found.append(Process(above, begun))
        above = _parent(above, proc)
    return found


def gone(watched: list[Process], proc: Path = PROC) -> bool:
    """Whether one of them has ended."""
    return any(_begun(process.pid, proc) != process.begun for process in watched)


def _is_launcher(pid: int, proc: Path) -> bool:
    with contextlib.suppress(OSError):
        words = (proc / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
        module, program = _run_by(words[1:])
        named = {Path(words[0]).name, Path(program).name}
        return f"{module}.".startswith(tuple(f"{name}." for name in MODULES)) or bool(named & {*PROGRAMS})
    return False


def _run_by(words: list[str]) -> tuple[str, str]:
    """The module or the program that an interpreter with these arguments runs; "" for what it does not."""
    left = iter(words)
    for word in left:
        if not word.startswith("-"):
            return "", word
        if word == "--check-hash-based-pycs":
            next(left, "")
        elif not word.startswith("--") and (found := VALUED.match(word)):
            value = found[2] or next(left, "")
            if found[1] in "cm":
                return value if found[1] == "m" else "", ""
    return "", ""


def _fields(pid: int, proc: Path) -> list[str]:
    """What follows a process's name in its stat file; empty where it is gone, or dead and not waited for."""
    with contextlib.suppress(OSError):
        fields = (proc / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields if fields[:1] not in (["Z"], ["X"]) else []
    return []


def _parent(pid: int, proc: Path) -> int:
    return int((_fields(pid, proc) or ["", "0"])[1])


def _begun(pid: int, proc: Path) -> str:
    return (_fields(pid, proc) or [""] * 20)[19]
