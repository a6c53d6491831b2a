"""The ledger of a run: ``events.jsonl`` in the run folder, one JSON object per line, over all its attempts.

Every line has ``time`` (seconds since 1970), ``event`` and ``attempt`` (0, 1, ... as DIFFCORE_ATTEMPT says,
which a launcher sets; by hand it stays 0). Rank 0 writes what training does, the launcher what is around it:

    submitted, started              by the launcher: the job was queued; its first process runs (queued: since
                                    when this life of the job had been in Slurm's queue)
    start                           training began; steps, world, pid, host
    loaded                          a checkpoint was taken up (or none); step
    first_step                      the first step of this process is done; step
    pace                            with each checkpoint, of several ranks: seconds of a step by rank, ``own``
                                    (without waits for others) and of these ``data`` (waiting for it); step
    saving, saved                   a checkpoint was begun and is complete; step, seconds, seconds waited
    skipped_step, rollback          a guard acted; step and why, and how many steps were lost
    preempted, hang, failed, done   how it ended; step, and code or why
    ended                           by the launcher: the process left; code, rank and node to blame
    left_out                        by the launcher: a node that the run goes on without; node and why
    refused                         by the launcher: a life that was given such a node ended at once; nodes
    save_failed, log_lost           a checkpoint, or the process's own output, could not be written; why
    damaged                         a file of the run could not be read and was set aside; why

A process that was killed writes no last line: its time ends with its last heartbeat. ``heartbeat.json`` holds
the newest: time, step, steps, attempt, section. Neither needs torch to be read. A line, or a heartbeat, whose
fields are not what ``Event`` and ``Beat`` say is as if it were not there, and lines left out are counted.
"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from diffbase.cli import InputError
from diffbase.files import renamed
from diffbase.formats import json_file, jsonl
from diffbase.system_error import DISK

ATTEMPT = "DIFFCORE_ATTEMPT"
LARGEST_BEAT = 10_000  # bytes

Count = Annotated[int, Field(ge=0, le=2**53)]
Seconds = Annotated[float, Field(ge=0, le=1e12)]
Words = Annotated[str, Field(max_length=100_000)]
Job = Annotated[str, Field(pattern=r"^[0-9]{1,20}(_[0-9]{1,10})?$")]
"""A job's number, as Slurm or the local machine gives it: it goes into commands and paths."""
FilePath = Annotated[str, Field(pattern=r"^[^\x00]+$", max_length=4096)]


class Event(BaseModel):
    """What is known of a line's fields; any others are let through, for whoever wrote them."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    time: Seconds
    event: Annotated[str, Field(min_length=1, max_length=100)]
    attempt: Annotated[int, Field(ge=0, le=10**9)]
    step: Count | None = None
    kept: Count = 0
    lost: Count = 0
    code: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    restart: Count = 0
    queued: Seconds | None = None
    seconds: Seconds = 0.0
    waited: Seconds = 0.0
    beat: Seconds | None = None
    progress: bool = False
    timeout: bool = False
    takeover: bool = False
    why: Words = ""
    rank: Annotated[int, Field(ge=0, le=10**9)] | None = None
    node: Annotated[str, Field(max_length=255)] | None = None
    job: Job | None = None
    name: Words = ""
    cluster: Annotated[str, Field(max_length=200)] | None = None
    folder: FilePath | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.event == "submitted" and None in (self.job, self.cluster, self.folder):
            raise ValueError("submitted needs job, cluster and folder")
        if self.event == "ended" and self.code is None:
            raise ValueError("ended needs a code")
        return self


class Beat(BaseModel):
    """A heartbeat."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    time: Seconds
    step: Count
    steps: Count
    attempt: Annotated[int, Field(ge=0, le=10**9)]
    section: Annotated[str, Field(max_length=100)]


def attempt() -> int:
    """Number of this attempt at the run; 0 by hand. InputError where DIFFCORE_ATTEMPT is no such number."""
    given = os.environ.get(ATTEMPT, "0")
    if not (given.isascii() and given.isdigit() and len(given) < 10):
        raise InputError(f"{ATTEMPT}: {given!r} is no number of an attempt; allowed are whole numbers from 0")
    return int(given)


def record(run: Path, event: str, **fields: Any) -> None:
    """Append one line."""
    jsonl.append(
        run / "events.jsonl", {"time": round(time.time(), 3), "event": event, "attempt": attempt()} | fields
    )


def note(run: Path, event: str, **fields: Any) -> OSError | None:
    """``record``, but where the disk does not take the line its error is returned: work goes on without it.

    Other errors, such as a link in the ledger's place, are raised: they are there from the start.
    """
    try:
        record(run, event, **fields)
    except OSError as error:
        if error.errno not in (*DISK, errno.EROFS):
            raise
        return error
    return None


def events(run: Path, left_out: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Every whole line of the ledger; ``left_out`` is given the numbers of those that cannot be read."""
    return jsonl.read(run / "events.jsonl", left_out, _is_event)


def _is_event(entry: dict[str, Any]) -> bool:
    try:
        Event.model_validate(entry)
    except ValidationError:
        return False
    return True


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
    """The newest heartbeat, or None; a damaged one is none, for the next comes in a second."""
    try:
        tree = json_file.read(run / "heartbeat.json", most=LARGEST_BEAT)
        return Beat.model_validate(tree).model_dump()
    except (OSError, InputError, ValidationError):
        return None
