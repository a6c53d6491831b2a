"""A time limit as people and Slurm write it."""

from __future__ import annotations

import re


def minutes_of(text: str) -> int | None:
    """Slurm's forms of a time limit as whole minutes, rounded up; None for anything else (``infinite``).

    ``90`` (minutes), ``MM:SS``, ``HH:MM:SS``, ``D-HH``, ``D-HH:MM``, ``D-HH:MM:SS``.
    """
    match = re.fullmatch(r"(?:(\d{1,9})-)?(\d{1,9})(?::(\d{1,9}))?(?::(\d{1,9}))?", text)
    if not match:
        return None
    days, *parts = (int(part) if part is not None else None for part in match.groups())
    first, second, third = parts[0] or 0, parts[1], parts[2]
    if days is not None:
        seconds = days * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)
    elif third is not None:
        seconds = first * 3600 + (second or 0) * 60 + third
    else:
        seconds = first * 60 + (second or 0)
    return -(-seconds // 60)
