"""The ledger of a run: ``events.jsonl`` in the run folder, one JSON object per line, over all its attempts.

Every line has ``time`` (seconds since 1970), ``event`` and ``attempt`` (0, 1, ... as DIFFCORE_ATTEMPT says,
which a launcher sets; by hand it stays 0). Rank 0 writes what training does, the launcher what is around it:

    submitted, started              by the launcher: the job was queued; its first process runs
    start                           training began; steps, world, pid, host
    loaded                          a checkpoint was taken up (or none); step
    first_step                      the first step of this process is done; step
    saving, saved                   a checkpoint was begun and is complete; step, seconds, seconds waited
    skipped_step, rollback          a guard acted; step and why, and how many steps were lost
    preempted, hang, failed, done   how it ended; step, and code or why
    ended                           by the launcher: the process left; code

A process that was killed writes no last line: its time ends with its last heartbeat. ``heartbeat.json`` holds
the newest: time, step, steps, attempt, section. Neither needs torch to be read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffbase import jsonl
from diffbase.files import renamed

ATTEMPT = "DIFFCORE_ATTEMPT"


def attempt() -> int:
    """Number of this attempt at the run; 0 by hand."""
    return int(os.environ.get(ATTEMPT, "0"))


def record(run: Path, event: str, **fields: Any) -> None:
    """Append one line."""
    jsonl.append(
        run / "events.jsonl", {"time": round(time.time(), 3), "event": event, "attempt": attempt()} | fields
    )


def events(run: Path) -> Iterator[dict[str, Any]]:
    """Every whole line of the ledger; one that a kill cut short is left out."""
    return (entry for entry in jsonl.read(run / "events.jsonl") if "event" in entry)


def beat(run: Path, step: int, steps: int, section: str) -> None:
    """Replace the heartbeat: where training is now."""
    tree = {
        "time": round(time.time(), 3),
        "step": step,
        "steps": steps,
        "attempt": attempt(),
        "section": section,
    }
    with renamed(run / "heartbeat.json") as temporary:  # not synced to disk: it is soon out of date
        temporary.write_text(json.dumps(tree))


def heartbeat(run: Path) -> dict[str, Any] | None:
    """The newest heartbeat, or None."""
    try:
        tree = json.loads((run / "heartbeat.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return tree if isinstance(tree, dict) else None
