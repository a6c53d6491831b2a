"""How the supervisors of one life of a job talk: small files in a folder of the run that all of them see.

    RUN/job/current.json            the life that may write into the run; an older one ends when it reads this
    RUN/job/001/live/SESSION/
        hello-NODE.json             this node's supervisor runs; what its preflight found
        plan-K.json                 by the leader: where attempt K meets, or that all leave and with what code
        exit-K-RANK.json            how this rank's process of attempt K ended

Files, not sockets: they need no port, and they outlive a node. The folder is listed before a file is opened,
because a network disk then asks its server, while for a single name it may answer "not there" for a minute.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import checked
from diffbase.files import renamed
from diffbase.formats import json_file
from diffbase.ledger import FilePath, Job, Seconds

LARGEST = 1 << 20  # bytes of a file
FORBID = ConfigDict(extra="forbid", allow_inf_nan=False)
Number = Annotated[int, Field(strict=True, ge=0, le=10**9)]
Code = Annotated[int, Field(strict=True, ge=-(2**31), lt=2**31)]
Words = Annotated[str, Field(max_length=100_000)]
Node = Annotated[str, Field(max_length=255)]
Flag = Annotated[bool, Field(strict=True)]
T = TypeVar("T")


@dataclass(frozen=True)
class Plan:
    """What all ranks do next: attempt ``attempt`` at ``address``:``port``, or leave with ``code``."""

    __pydantic_config__ = FORBID

    attempt: Number
    address: Node = ""
    port: Annotated[int, Field(strict=True, ge=0, le=65535)] = 0
    leave: Flag = False
    code: Code = 0
    why: Words = ""
    avoid: Annotated[Sequence[Node], Field(max_length=100_000)] = ()


@dataclass(frozen=True)
class Exit:
    """How a rank's process ended. ``code`` as subprocess gives it; ``ours``: its supervisor ended it."""

    __pydantic_config__ = FORBID

    rank: Number
    code: Code
    time: Seconds
    node: Node
    ours: Flag = False


@dataclass(frozen=True)
class Hello:
    """That a node's supervisor runs, and what its preflight found."""

    __pydantic_config__ = FORBID

    node: Node
    pid: Number
    problems: Annotated[list[Words], Field(max_length=1000)]


@dataclass(frozen=True)
class Current:
    """The life that may write into the run."""

    __pydantic_config__ = FORBID

    job: Job
    folder: FilePath


class Meeting:
    """The folder of one life, in which its supervisors write to each other."""

    def __init__(self, live: Path, session: str) -> None:
        self.folder = live / session
        self._current = live.parents[1] / "current.json"

    def open(self) -> None:
        """Make the folder, owner only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    # --- which life is the newest ---

    def claim(self, job: str) -> None:
        """From now on this life is the run's; any older one stops."""
        _write(self._current, {"job": job, "folder": str(self.folder)})

    def claimed_by(self) -> str | None:
        """The job whose life claimed the run last."""
        current = _read(self._current, Current)
        return None if current is None else current.job

    def superseded(self) -> bool:
        """Whether another life has claimed the run."""
        current = _read(self._current, Current)
        return current is not None and current.folder != str(self.folder)

    # --- hello ---

    def say_hello(self, number: int, node: str, problems: list[str]) -> None:
        """Say that the supervisor of node ``number`` runs, and what is wrong with the node."""
        _write(self.folder / f"hello-{number}.json", {"node": node, "pid": os.getpid(), "problems": problems})

    def hellos(self) -> dict[int, Hello]:
        """What each node whose supervisor has said hello wrote, by its number."""
        return self._by_number("hello-", Hello, {})

    # --- plans ---

    def publish(self, number: int | str, plan: Plan) -> None:
        """Make a plan known to all ranks."""
        _write(self.folder / f"plan-{number}.json", asdict(plan))

    def plan(self, number: int | str) -> Plan | None:
        """The plan of that number; None while there is none."""
        name = f"plan-{number}.json"
        return _read(self.folder / name, Plan) if name in self._names() else None

    # --- exits ---

    def report(self, number: int | str, exit: Exit) -> None:
        """Tell the leader how this rank's process of attempt ``number`` ended."""
        _write(self.folder / f"exit-{number}-{exit.rank}.json", asdict(exit))

    def exits(self, number: int | str, known: dict[int, Exit]) -> dict[int, Exit]:
        """Every exit of an attempt; ``known`` ones are not read again."""
        found = self._by_number(f"exit-{number}-", Exit, known)
        return {rank: exit for rank, exit in found.items() if exit.rank == rank}

    def _by_number(self, prefix: str, kind: type[T], known: dict[int, T]) -> dict[int, T]:
        """What was written under ``prefix``, by number; a file that is damaged is as if it were not there."""
        found = dict(known)
        for name in self._names():
            match = re.fullmatch(re.escape(prefix) + r"(\d{1,9})\.json", name, re.ASCII)
            if match and int(match[1]) not in found and (one := _read(self.folder / name, kind)):
                found[int(match[1])] = one
        return found

    def _names(self) -> list[str]:
        try:
            return sorted(path.name for path in self.folder.iterdir())
        except FileNotFoundError:
            return []


def _write(path: Path, tree: dict[str, Any]) -> None:
    with renamed(path) as temporary:
        temporary.write_text(json.dumps(tree))
        temporary.chmod(0o600)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return checked(kind, json_file.read(path, most=LARGEST), str(path))
    except (OSError, InputError):
        return None
