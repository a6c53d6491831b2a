"""The launchers above this process: when one is gone nobody watches the ranks any more, and they leave.

deepspeed's command starts a second process, and that one the ranks: the kernel tells a process of its own
parent's end at most. So each rank looks at all of them. A shell above is none of these: a run that was put
into the background goes on when its terminal closes.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import NamedTuple

PROC = Path("/proc")
MODULES = ("deepspeed.launcher.launch", "deepspeed.launcher.runner", "torch.distributed.run", "accelerate")
PROGRAMS = ("deepspeed", "ds", "torchrun", "accelerate", "accelerate-launch")
"""What a launcher's command line names: modules after -m, or programs."""


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
        program = next((word for word in words[1:] if not word.startswith("-")), "")  # after the interpreter
        module = words[words.index("-m") + 1] if "-m" in words[:-1] else ""
        return module in MODULES or {Path(words[0]).name, Path(program).name} & {*PROGRAMS} != set()
    return False


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
