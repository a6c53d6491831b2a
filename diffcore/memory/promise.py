"""What ``submit --auto`` promised of a run, kept in its folder, beside what came of it. Imports no torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import write_json
from diffbase.formats import json_file
from diffbase.trust import file_mode
from diffcore.memory import anatomy
from diffcore.memory.fitting.measured import median_rate

SCHEMA = "diffcore.promise/1"
FILE = "promise.json"
LARGEST = 100_000
"""Bytes of the file."""
Count = Annotated[int, Field(ge=0, le=2**53)]
Time = Annotated[float, Field(ge=0, le=1e12)]
Word = Annotated[str, Field(max_length=200)]


class Promise(BaseModel):
    """promise.json; sizes in bytes of one GPU, times in seconds since 1970."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    schema_: Annotated[Literal["diffcore.promise/1"], Field(alias="schema")]
    card: Word
    nodes: Count
    world: Count
    zero: Count
    checkpointing: Word
    micro_batch: Count
    accumulation: Count
    planned_bytes: Count
    """What nvidia-smi is to show."""
    peak_bytes: Count
    """Of it tensors, at the fullest moment."""
    images_per_second: Annotated[float, Field(gt=0, le=1e12)]
    timed: Word
    submitted: Time
    start: Time | None = None
    """Slurm's forecast; None: it made none."""


def write(run: Path, tree: Mapping[str, Any]) -> None:
    """Keep a promise in the run folder, where the run's own files may be read by the same people."""
    write_json(run / FILE, tree, sort_keys=True)
    (run / FILE).chmod(file_mode(run))


def beside(run: Path) -> dict[str, Any] | None:
    """The promise and what was delivered so far, None for what is not known yet; None of a run without one.

    InputError for a file that is none.
    """
    path = run / FILE
    try:
        if not path.exists():
            return None
        told = validated(Promise, json_file.read(path, most=LARGEST), str(path))
    except PermissionError:  # another's run
        return None
    return {"promised": told.model_dump(by_alias=True), "delivered": _delivered(run, told)}


def _delivered(run: Path, told: Promise) -> dict[str, Any]:
    events = list(ledger.events(run))
    starts = [float(e["time"]) for e in events if e["event"] == "start" and e["time"] >= told.submitted]
    worlds = [e.get("world") for e in events if e["event"] == "start" and e["time"] >= told.submitted]
    found: dict[str, Any] = {
        "start": starts[0] if starts else None,
        "world": worlds[-1] if worlds else None,
        "images_per_second": median_rate(run),
        "total_bytes": None,
        "peak_bytes": None,
        "device": None,
    }
    if not (run / "anatomy.json").exists():
        return found
    try:
        ranks = anatomy.load(run)["measured"]
    except InputError:  # the report says so itself
        return found
    if ranks:
        peaks = [moment["allocated"] for rank in ranks for moment in rank["moments"]]
        totals = [rank["total"]["bytes"] for rank in ranks if rank.get("total") and rank["device"] != "cpu"]
        found |= {"peak_bytes": max(peaks), "total_bytes": max(totals, default=None)}
        found["device"] = ranks[0]["device"]
    return found


def rows(tree: Mapping[str, Any]) -> dict[str, str]:
    """Two lines for people: promised, delivered."""
    told, had = tree["promised"], tree["delivered"]
    start = f", start {when(told['start'])}" if told["start"] else ""
    promised = (
        f"{mib(told['planned_bytes'])} of each {told['card']}, tensors {mib(told['peak_bytes'])}; "
        f"{told['images_per_second']:,.4g} images/s on {ranks(told['world'])} ({told['timed']}){start}"
    )
    words = []
    if had["total_bytes"] is not None:
        words.append(f"{mib(had['total_bytes'])} ({off(had['total_bytes'], told['planned_bytes'])})")
    if had["peak_bytes"] is not None:
        words.append(f"tensors {mib(had['peak_bytes'])} ({off(had['peak_bytes'], told['peak_bytes'])})")
    if had["images_per_second"] is not None:
        rate = had["images_per_second"]
        words.append(f"{rate:,.4g} images/s ({off(rate, told['images_per_second'])})")
    if had["start"] is not None:
        late = had["start"] - (told["start"] or had["start"])
        apart = f" ({clock(abs(late))} {'later' if late >= 0 else 'earlier'})" if told["start"] else ""
        words.append(f"start {when(had['start'])}{apart}")
    if had["world"] not in (None, told["world"]):
        words.append(f"on {ranks(had['world'])}")
    if had["device"] == "cpu":
        words.append("on the CPU")
    return {"promised": promised, "delivered": "; ".join(words) or "nothing yet"}


def ranks(world: int) -> str:
    """How many."""
    return f"{world} rank{'s' if world != 1 else ''}"


def mib(size: float) -> str:
    """Bytes in words."""
    return f"{size / 2**20:,.0f} MiB"


def off(have: float, promised: float) -> str:
    """How far from the promise, in percent of it."""
    return f"{have / promised - 1:+.1%}" if promised else "new"


def when(moment: float) -> str:
    """A time in the words of this machine's clock."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(moment))


def clock(seconds: float) -> str:
    """So long: 2 d 03:10, 3:10 h, 25 min, 40 s."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02d}:{minute:02d}"
    return f"{hours}:{minute:02d} h" if hours else f"{minute} min" if minute else f"{rest} s"
