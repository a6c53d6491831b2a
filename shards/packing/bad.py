"""The bad images of a pack: ``bad.jsonl`` names all of them; then the pack stops, or leaves them out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from diffbase.cli import InputError
from diffbase.files import write_atomic

FILE = "bad.jsonl"
STOP, SKIP = "stop", "skip"
LISTED = 100_000
"""How many are looked for, and the most that may be left out: they are kept in memory."""
SHARE, AT_LEAST = 0.01, 10
"""Of the samples, how many are left out where no number is given: more than a few mean a mistake."""
SAID = 3  # of them, in a message


class Bad(NamedTuple):
    """A sample whose image cannot be packed: its key, where it lies, and why."""

    key: str
    where: str
    reason: str


@dataclass(frozen=True)
class OnBad:
    """What is done about bad images: ``stop`` when all are found, or ``skip`` up to ``limit`` of them."""

    action: str = STOP
    limit: int | None = None  # None: SHARE of the samples, but AT_LEAST so many

    def __post_init__(self) -> None:
        if self.action not in (STOP, SKIP):
            raise InputError(f"--on-bad {self.action}: unknown; allowed: {STOP}, {SKIP}")
        if self.limit is not None and self.action != SKIP:
            raise InputError(f"--bad-limit {self.limit}: only with --on-bad {SKIP}")
        if not 0 <= (self.limit or 0) <= LISTED:
            raise InputError(f"--bad-limit {self.limit}: allowed: 0 to {LISTED}")

    def allowed(self, samples: int | None) -> int:
        """The most bad ones of so many ``samples`` with which a pack goes on; None: nobody knows yet."""
        if self.action == STOP or (samples is None and self.limit is None):
            return LISTED
        return max(AT_LEAST, int(SHARE * (samples or 0))) if self.limit is None else self.limit

    def refuse(
        self, found: Sequence[Bad], out: Path, *, all_found: bool = True, too_many: bool = False
    ) -> None:
        """InputError that names the first of the bad images ``found`` and where the others are named."""
        first = "; ".join(f"{bad.where}: {bad.reason}" for bad in found[:SAID])
        more = "; ..." * (len(found) > SAID)
        count = f"{len(found)} bad image{'s' * (len(found) > 1)}{'' if all_found else ' so far'}"
        if self.action == STOP:
            what = f"mend them, or leave them out with --on-bad {SKIP}"
        elif too_many:
            what = "more than the limit; --bad-limit allows more"
        else:
            what = "none is good"
        raise InputError(f"{first}{more} ({count}, in {out / FILE}: {what})")


def left_out(count: int) -> str:
    """The end of a sentence about a pack: how many bad images it lacks, if any."""
    return f", {count} bad image{'s' * (count > 1)} left out" if count else ""


def write_bad(folder: Path, found: Iterable[Bad]) -> None:
    """Bring ``bad.jsonl`` up to date: a line for each, as packed; no file where none is bad."""
    text = "".join(json.dumps(bad._asdict()) + "\n" for bad in found)
    if text:
        write_atomic(folder / FILE, text.encode())
    else:
        (folder / FILE).unlink(missing_ok=True)
