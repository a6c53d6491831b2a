"""``metrics.jsonl``: a line per logged step, ``step`` and figures by tag. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffbase.formats import jsonl

FILE = "metrics.jsonl"
LARGEST = 2**63


def read(run: Path, left_out: list[int] | None = None) -> Iterator[dict[str, Any]]:
    """Every line with a step and nothing but numbers; ``left_out``: ``jsonl.read``'s.

    A figure that was not finite is nan: null in the file, or NaN in an older version's.
    """
    for line in jsonl.read(run / FILE, left_out, _is_line):
        yield {tag: math.nan if value is None else value for tag, value in line.items()}


def _is_line(entry: dict[str, Any]) -> bool:
    step = entry.get("step")
    return isinstance(step, int) and step >= 0 and all(map(_is_number, entry.values()))


def _is_number(value: Any) -> bool:
    """A whole number of any length parses, and no float holds it."""
    if value is None or isinstance(value, float):
        return True
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < LARGEST
