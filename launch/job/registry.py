"""Where this user's jobs are, so that ``launch.jobs list`` finds them, and nodes left out of later ones.

Small files of the user's own, under $XDG_STATE_HOME/diffcore (~/.local/state/diffcore): ``jobs.jsonl`` with
one line per submission, and for each cluster the nodes that failed a preflight, with the time until when.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffbase import jsonl
from diffbase.files import renamed

NEWEST = 200  # submissions that a list looks at


def home() -> Path:
    """The folder of this user's state."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "diffcore"


def remember(run: Path, job: str, cluster: str) -> None:
    """One more submission. A single write, so that two at once do not mix."""
    entry = {"time": round(time.time()), "run": str(run), "job": job, "cluster": cluster}
    _append(home() / "jobs.jsonl", entry)


def submissions() -> list[dict[str, Any]]:
    """This user's newest submissions, oldest first."""
    return list(jsonl.read(home() / "jobs.jsonl"))[-NEWEST:]


def exclude(cluster: str, nodes: Mapping[str, str], hours: float) -> Path:
    """Leave ``nodes`` (name -> why) out of the next submissions to ``cluster``; returns the file."""
    path = _excluded_path(cluster)
    until = round(time.time() + hours * 3600)
    for node, why in nodes.items():
        _append(path, {"node": node, "until": until, "why": why})
    return path


def excluded(cluster: str) -> dict[str, str]:
    """Nodes that are left out of submissions to ``cluster`` now, and why."""
    path, now = _excluded_path(cluster), time.time()
    lines = list(jsonl.read(path))
    current = [line for line in lines if float(line.get("until", 0)) > now and "node" in line]
    if len(current) < len(lines):
        with renamed(path) as temporary:
            temporary.write_text(jsonl.text(current))
    return {str(line["node"]): str(line.get("why", "")) for line in current}


def _excluded_path(cluster: str) -> Path:
    return home() / f"excluded-{cluster}.jsonl"


def _append(path: Path, entry: Mapping[str, Any]) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    jsonl.append(path, entry)
