"""How often something is done: every so many steps, or after so much time."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import BeforeValidator

UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_TIME = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh])")
ALLOWED = (
    "allowed: a number of steps from 1 on, or a time of so many seconds, minutes or hours (90s, 10m, 1.5h)"
)


def seconds_of(given: int | str) -> float | None:
    """The seconds of a time such as ``10m``; None for a number of steps. ValueError where it is neither."""
    if isinstance(given, int):
        return None
    found = _TIME.fullmatch(given)
    if found is None or not float(found[1]):
        raise ValueError(f"neither steps nor a time; {ALLOWED}")
    return float(found[1]) * UNITS[found[2]]


def _often(given: Any) -> Any:
    # Of a union with str pydantic would keep a flag's digits as text.
    if isinstance(given, float) and given.is_integer():
        given = int(given)
    if isinstance(given, bool) or not isinstance(given, int | str):
        raise ValueError(f"neither steps nor a time; {ALLOWED}")
    if isinstance(given, str) and given.isascii() and given.isdigit() and len(given) < 20:
        given = int(given)
    if isinstance(given, int) and given < 1:
        raise ValueError(f"less than one step; {ALLOWED}")
    seconds_of(given)
    return given


Often = Annotated[int | str, BeforeValidator(_often)]
"""Steps, or a time as ``seconds_of`` reads it."""
