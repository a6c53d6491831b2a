"""The report: lines for people and for bug reports, or JSON for programs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from diffbase.line import say
from launch.doctor.finding import STATUSES, Finding, worst

VERSION = 1
"""Of the JSON."""


def cleaned(findings: Sequence[Finding], clean: Callable[[str], str]) -> list[Finding]:
    """The same, each text passed through ``clean``."""
    return [
        replace(one, found=clean(one.found), todo=None if one.todo is None else clean(one.todo))
        for one in findings
    ]


def as_tree(findings: Sequence[Finding]) -> dict[str, Any]:
    """``{"checks": [{"status", "name", "found", "todo"}], "status", "version"}``, for JSON."""
    checks = [asdict(finding) for finding in findings]
    return {"version": VERSION, "status": worst(findings), "checks": checks}


def as_text(findings: Sequence[Finding]) -> str:
    """A line for each finding, one below it for what to do, and a last one that counts them."""
    width = max((len(finding.name) for finding in findings), default=0)
    lines = []
    for one in findings:
        lines.append(f"{one.status:4}  {one.name:{width}}  {one.found}")
        if one.todo:
            lines.append(f"{'':4}  {'':{width}}  -> {one.todo}")
    counts = Counter(finding.status for finding in findings)
    lines.append(f"{len(findings)} checks: " + ", ".join(f"{counts[status]} {status}" for status in STATUSES))
    return "\n".join(lines)


def show(text: str) -> None:
    """On stdout, whatever its encoding can hold."""
    encoding = sys.stdout.encoding or "ascii"
    say(text.encode(encoding, "backslashreplace").decode(encoding))
