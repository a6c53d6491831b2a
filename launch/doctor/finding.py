"""What a check is, and what it finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "bad"]
STATUSES: tuple[Status, ...] = ("ok", "warn", "bad")
"""From good to bad."""


@dataclass(frozen=True)
class Finding:
    """One line of the report. ``name`` is a constant of ours; ``found`` and ``todo`` may hold anything."""

    status: Status
    name: str
    found: str
    todo: str | None = None
    """What to do about it; None where nothing need be done."""


@dataclass(frozen=True)
class Check:
    """Something to look at, in a process of its own.

    ``ask`` yields findings as it makes them: those before a crash or a hang are kept.
    """

    name: str
    ask: Callable[[], Iterator[Finding]]


def ok(name: str, found: str) -> Finding:
    """All is well."""
    return Finding("ok", name, found)


def warn(name: str, found: str, todo: str) -> Finding:
    """It can be trained here, but not everything, or not for long."""
    return Finding("warn", name, found, todo)


def bad(name: str, found: str, todo: str) -> Finding:
    """Training would fail here."""
    return Finding("bad", name, found, todo)


def worst(findings: Sequence[Finding]) -> Status:
    """The worst status among ``findings``; ok of none."""
    return max((finding.status for finding in findings), key=STATUSES.index, default="ok")
