"""What the supervisors of one life of a job say to each other, and what is kept of it on the run's disk.

They talk over connections to rank 0's (wire/). It alone writes, a file a decision, as a record and for those
that have no connection to it:

    RUN/job/current.json            the life that may write into the run; an older one ends then
    RUN/job/001/live/SESSION/
        leader.json                 where rank 0's supervisor listens, and the life's secret
        plan-K.json                 where attempt K meets, or that all leave and with what code
        exits-K.json                how the processes of attempt K ended

The folder is listed before a plan is opened, because a network disk then asks its server, while for a single
name it may answer "not there" for a minute.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field

from diffbase.cli import InputError
from diffbase.exits import DONE, PREEMPTED
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
class Ended:
    """What a supervisor has to know of the other nodes' processes of an attempt."""

    __pydantic_config__ = FORBID

    count: Number = 0
    """How many ranks have ended, of all nodes."""
    failed: Flag = False
    """Whether one failed, or its supervisor is gone."""
    first: Flag = False
    """Whether rank 0 is among them."""


@dataclass(frozen=True)
class Door:
    """Where rank 0's supervisor listens, and what those who come there have to know."""

    __pydantic_config__ = FORBID

    address: Node
    port: Annotated[int, Field(strict=True, ge=1, le=65535)]
    secret: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class Current:
    """The life that may write into the run."""

    __pydantic_config__ = FORBID

    job: Job
    folder: FilePath


class Record:
    """The folder of one life, and which life is the newest."""

    def __init__(self, live: Path, session: str) -> None:
        self.folder = live / session
        self._current = live.parents[1] / "current.json"

    def open(self) -> None:
        """Make the folder, owner only."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)

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

    def keep_door(self, door: Door) -> None:
        """Tell this user's processes, and nobody else, where the leader listens."""
        _write(self.folder / "leader.json", asdict(door))

    def door(self) -> Door | None:
        """Where the leader listens; None while it does not, or if the file could be anybody's."""
        path = self.folder / "leader.json"
        try:
            status = path.lstat()
        except OSError:
            return None
        mine = status.st_uid == os.geteuid() and not status.st_mode & 0o077
        return _read(path, Door) if mine else None

    def keep_plan(self, number: int | str, plan: Plan) -> None:
        """Write a plan down."""
        _write(self.folder / f"plan-{number}.json", asdict(plan))

    def kept_plan(self, number: int | str) -> Plan | None:
        """The plan of that number as it is written down; None while it is not."""
        name = f"plan-{number}.json"
        return _read(self.folder / name, Plan) if name in self._names() else None

    def keep_exits(self, number: int | str, exits: Iterable[Exit]) -> None:
        """Write down how the processes of an attempt ended."""
        _write(self.folder / f"exits-{number}.json", {"exits": [asdict(exit) for exit in exits]})

    def _names(self) -> list[str]:
        try:
            return [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []


class Meeting(Record):
    """What rank 0's supervisor knows of the others, to which wire/hub.py adds connections."""

    gone = False
    """Whether the leader is lost: not to itself."""
    overtaken = False
    """Whether the leader has said that another life has begun; it asks the disk itself."""
    on_its_own = True
    """Whether this supervisor has to look at the disk for what the leader would tell it."""

    def __init__(self, live: Path, session: str) -> None:
        super().__init__(live, session)
        self._hellos: dict[int, Hello] = {}
        self._plans: dict[int | str, Plan] = {}
        self._exits: dict[int | str, dict[int, Exit]] = {}

    def listen(self, address: Callable[[], str], ports: Iterable[int]) -> None:
        """Have the others' supervisors come to ``address()`` and the first of ``ports`` that is free."""

    def wait(self, seconds: float) -> None:
        """So long, or until something came from another node."""
        time.sleep(seconds)

    def say_hello(self, number: int, node: str, problems: list[str]) -> None:
        """Say that the supervisor of node ``number`` runs, and what is wrong with the node."""
        self._hellos[number] = Hello(node, os.getpid(), problems)

    def hellos(self) -> dict[int, Hello]:
        """What each node's supervisor that has said hello found, by the node's number."""
        return dict(self._hellos)

    def publish(self, number: int | str, plan: Plan) -> None:
        """Make a plan known to all. OSError if an attempt cannot be written down; leaving needs no file."""
        try:
            self.keep_plan(number, plan)
        except OSError:
            if not plan.leave:
                raise
        self._plans[number] = plan

    def plan(self, number: int | str) -> Plan | None:
        """The plan of that number; None while there is none."""
        return self._plans.get(number)

    def report(self, number: int | str, exit: Exit) -> None:
        """Tell the leader how a rank's process of attempt ``number`` ended."""
        self._exits.setdefault(number, {})[exit.rank] = exit

    def exits(self, number: int | str, known: dict[int, Exit]) -> dict[int, Exit]:
        """Every exit of an attempt so far, with the ``known`` ones."""
        return known | self._exits.get(number, {})

    def ended(self, number: int | str) -> Ended:
        """The same, as far as the others have to know it."""
        exits = self._exits.get(number, {})
        failed = any(exit.code not in (DONE, PREEMPTED) for exit in exits.values())
        return Ended(len(exits), failed or bool(self.lost()), 0 in exits)

    def lost(self) -> frozenset[int]:
        """Nodes whose supervisors are gone, by number."""
        return frozenset()

    def tell_overtaken(self) -> None:
        """Tell the others that another life has begun."""

    def close(self) -> None:
        """Say what is still to be said, and leave."""


def _write(path: Path, tree: dict[str, Any]) -> None:
    with renamed(path) as temporary:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with os.fdopen(os.open(temporary, flags, 0o600), "w") as file:
            json.dump(tree, file)


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        return checked(kind, json_file.read(path, most=LARGEST), str(path))
    except (OSError, InputError):
        return None
