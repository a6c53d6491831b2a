"""How the supervisors of one life of a job talk: small files in a folder of the run that all of them see.

    RUN/job/current.json            the life that may write into the run; an older one ends when it reads this
    RUN/job/001/live/SESSION/
        hello-RANK.json             this rank's supervisor runs; what its preflight found
        plan-K.json                 by the leader: where attempt K meets, or that all leave and with what code
        exit-K-RANK.json            how this rank's process of attempt K ended

Files, not sockets: they need no port, and they outlive a node. The folder is listed before a file is opened,
because a network disk then asks its server, while for a single name it may answer "not there" for a minute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffbase.files import renamed


@dataclass(frozen=True)
class Plan:
    """What all ranks do next: attempt ``attempt`` at ``address``:``port``, or leave with ``code``."""

    attempt: int
    address: str = ""
    port: int = 0
    leave: bool = False
    code: int = 0
    why: str = ""
    avoid: Sequence[str] = ()


@dataclass(frozen=True)
class Exit:
    """How a rank's process ended. ``code`` as subprocess gives it; ``ours``: its supervisor ended it."""

    rank: int
    code: int
    time: float
    node: str
    ours: bool = False


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
        tree = _read(self._current)
        return None if tree is None else str(tree.get("job"))

    def superseded(self) -> bool:
        """Whether another life has claimed the run."""
        tree = _read(self._current)
        return tree is not None and tree.get("folder") != str(self.folder)

    # --- hello ---

    def say_hello(self, rank: int, node: str, problems: list[str]) -> None:
        """Say that this rank's supervisor runs, and what is wrong with its node."""
        _write(self.folder / f"hello-{rank}.json", {"node": node, "pid": os.getpid(), "problems": problems})

    def hellos(self) -> dict[int, dict[str, Any]]:
        """What each rank that has said hello wrote: node, pid, problems."""
        return {int(name.split("-")[1]): tree for name, tree in self._read_all("hello-")}

    # --- plans ---

    def publish(self, number: int | str, plan: Plan) -> None:
        """Make a plan known to all ranks."""
        _write(self.folder / f"plan-{number}.json", asdict(plan))

    def plan(self, number: int | str) -> Plan | None:
        """The plan of that number; None while there is none."""
        found = [tree for _, tree in self._read_all(f"plan-{number}.")]
        return Plan(**found[0]) if found else None

    # --- exits ---

    def report(self, number: int | str, exit: Exit) -> None:
        """Tell the leader how this rank's process of attempt ``number`` ended."""
        _write(self.folder / f"exit-{number}-{exit.rank}.json", asdict(exit))

    def exits(self, number: int | str, known: dict[int, Exit]) -> dict[int, Exit]:
        """Every exit of an attempt; ``known`` ones are not read again."""
        prefix = f"exit-{number}-"
        new = {}
        for name in self._names(prefix):
            rank = int(name.removeprefix(prefix).removesuffix(".json"))
            if rank not in known and (tree := _read(self.folder / name)):
                new[rank] = Exit(**tree)
        return known | new

    def _names(self, prefix: str) -> list[str]:
        try:
            names = [path.name for path in self.folder.iterdir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.startswith(prefix) and name.endswith(".json"))

    def _read_all(self, prefix: str) -> list[tuple[str, dict[str, Any]]]:
        read = ((name.removesuffix(".json"), _read(self.folder / name)) for name in self._names(prefix))
        return [(name, tree) for name, tree in read if tree is not None]


def _write(path: Path, tree: dict[str, Any]) -> None:
    with renamed(path) as temporary:
        temporary.write_text(json.dumps(tree))
        temporary.chmod(0o600)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None
