"""Where this user's jobs are, so that ``launch.jobs list`` finds them, and nodes left out of later ones.

Small files of the user's own, under $XDG_STATE_HOME/diffcore (~/.local/state/diffcore): ``jobs.jsonl`` with
one line per submission, and for each cluster the nodes that failed a preflight, with the time until when.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffbase import jsonl
from diffbase.files import renamed, set_aside
from diffbase.ledger import FilePath, Job, Seconds

NEWEST = 200  # submissions that a list looks at


class Submission(BaseModel):
    """A line of jobs.jsonl."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    time: Seconds
    run: FilePath
    job: Job
    cluster: Annotated[str, Field(max_length=200)]


class Excluded(BaseModel):
    """A line of a cluster's file of nodes; the name goes to sbatch."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    node: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]
    until: Seconds
    why: Annotated[str, Field(max_length=100_000)] = ""


def home() -> Path:
    """The folder of this user's state."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "diffcore"


def remember(run: Path, job: str, cluster: str) -> None:
    """One more submission. A single write, so that two at once do not mix."""
    entry = {"time": round(time.time()), "run": str(run), "job": job, "cluster": cluster}
    _append(home() / "jobs.jsonl", entry)


def submissions() -> list[dict[str, Any]]:
    """This user's newest submissions, oldest first; lines that are none are left out."""
    path = home() / "jobs.jsonl"
    return list(jsonl.read(path, is_one=partial(_is_a, Submission)))[-NEWEST:]


def _is_a(kind: type[BaseModel], entry: dict[str, Any]) -> bool:
    try:
        kind.model_validate(entry)
    except ValidationError:
        return False
    return True


def exclude(cluster: str, nodes: Mapping[str, str], hours: float) -> Path:
    """Leave ``nodes`` (name -> why) out of the next submissions to ``cluster``; returns the file."""
    path = _excluded_path(cluster)
    until = round(time.time() + hours * 3600)
    for node, why in nodes.items():
        _append(path, {"node": node, "until": until, "why": why})
    return path


def excluded(cluster: str) -> dict[str, str]:
    """Nodes that are left out of submissions to ``cluster`` now, and why."""
    path, now, damaged = _excluded_path(cluster), time.time(), list[int]()
    lines = list(jsonl.read(path, damaged, partial(_is_a, Excluded)))
    current = [line for line in lines if line["until"] > now]
    if len(current) < len(lines) or damaged:
        with renamed(path) as temporary:
            temporary.write_text(jsonl.text(current))
            if damaged:  # what it was stays beside it
                set_aside(path)
    return {line["node"]: line.get("why", "") for line in current}


def _excluded_path(cluster: str) -> Path:
    return home() / f"excluded-{cluster}.jsonl"


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    jsonl.append(path, entry)
