"""Where this user's jobs are, so that ``launch.jobs list`` finds them, and nodes left out of later ones.

Small files of the user's own, under $XDG_STATE_HOME/diffcore (~/.local/state/diffcore): ``jobs.jsonl`` with
one line per submission, and for each cluster the nodes that failed a preflight, with the time until when.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from diffbase.cli import InputError
from diffbase.files import renamed, set_aside
from diffbase.formats import jsonl
from diffbase.ledger import FilePath, Job, Seconds
from diffbase.machine import home
from diffbase.trust import own_folder

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


def path_of(name: str) -> Path:
    """Of a file of this user's state. InputError for one who has no home."""
    folder = home.state()
    if folder is None:
        raise InputError("this user has no home folder; XDG_STATE_HOME names another one")
    return folder / name


def remember(run: Path, job: str, cluster: str) -> str:
    """One more submission. A single write, so that two at once do not mix.

    Returns why it could not be written, or "": the job runs all the same.
    """
    entry = {"time": round(time.time()), "run": str(run), "job": job, "cluster": cluster}
    return _append("jobs.jsonl", [entry])


def submissions() -> list[dict[str, Any]]:
    """This user's newest submissions, oldest first; lines that are none are left out."""
    return _read("jobs.jsonl", Submission, [])[-NEWEST:]


def exclude(cluster: str, nodes: Mapping[str, str], hours: float) -> str:
    """Leave ``nodes`` (name -> why) out of the next submissions to ``cluster``.

    Returns why they could not be written down, or "".
    """
    until = round(time.time() + hours * 3600)
    return _append(_excluded(cluster), [{"node": n, "until": until, "why": why} for n, why in nodes.items()])


def excluded(cluster: str) -> dict[str, str]:
    """Nodes that are left out of submissions to ``cluster`` now, and why."""
    folder, now, damaged = home.state(), time.time(), list[int]()
    lines = _read(_excluded(cluster), Excluded, damaged)
    current = [line for line in lines if line["until"] > now]
    if folder and (len(current) < len(lines) or damaged):
        path = folder / _excluded(cluster)
        # Where it cannot be written the old lines stay, and are passed over again.
        with suppress(OSError), renamed(path) as temporary:
            temporary.write_text(jsonl.text(current))
            if damaged:  # what it was stays beside it
                set_aside(path)
    return {line["node"]: line.get("why", "") for line in current}


def _excluded(cluster: str) -> str:
    return f"excluded-{cluster}.jsonl"


def _read(name: str, kind: type[BaseModel], damaged: list[int]) -> list[dict[str, Any]]:
    """The file's lines of that kind; none where there is no home, or one that this user may not enter."""
    folder = home.state()
    with suppress(PermissionError, NotADirectoryError):
        return list(jsonl.read(folder / name, damaged, partial(_is_a, kind))) if folder else []
    return []


def _is_a(kind: type[BaseModel], entry: dict[str, Any]) -> bool:
    try:
        kind.model_validate(entry)
    except ValidationError:
        return False
    return True


def _append(name: str, entries: Sequence[Mapping[str, Any]]) -> str:
    try:
        path = path_of(name)
        own_folder(path.parent)
        for entry in entries:
            jsonl.append(path, entry)
    except OSError as error:
        return f"{error.filename or name}: {error.strerror or error}"
    except InputError as error:
        return str(error)
    return ""
