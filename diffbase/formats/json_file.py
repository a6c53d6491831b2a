"""JSON files as trees; a file that is none, or far too large for one of ours, is one clear line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NoReturn

from diffbase.cli import InputError
from diffbase.system_error import NO_FILE, NoPlainFileError, read_bytes

MOST = 64 << 20
"""Bytes of the largest file that is read."""
VALUES = 6_000_000
"""The most [ { , and : of a file, which tell of its values: a state.json of a million parameters has 4e6."""


def read(path: Path, missing: str = "no such file", most: int = MOST, *, nan: bool = False) -> Any:
    """What is in a JSON file. InputError where there is none, which says ``missing``, or it is no JSON.

    ``nan``: as ``parse``.
    """
    try:
        data = read_bytes(path, most + 1)
    except NoPlainFileError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    except NO_FILE:
        raise InputError(f"{path}: {missing}") from None
    if len(data) > most:
        raise InputError(f"{path}: more than {most} bytes")
    return parse(data, str(path), nan=nan)


def parse(data: bytes, where: str, *, nan: bool = False) -> Any:
    """The tree in ``data``. InputError, which begins with ``where``, for anything but standard JSON.

    NaN and Infinity, which Python writes and reads, are no JSON; ``nan`` takes them even so, for files that
    have them from us. A number too large for a float is infinite:
    whoever does arithmetic with it has a schema that says what is allowed.
    """
    if sum(map(data.count, b"[{,:")) > VALUES:  # each is an object of Python's, of up to a hundred bytes
        raise InputError(f"{where}: not a JSON file of ours: more than {VALUES} values")
    try:
        return json.loads(data, parse_constant=None if nan else _refuse)
    except (ValueError, RecursionError) as error:  # also UnicodeDecodeError, and a number of 5,000 digits
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{where}: not a JSON file: {what}") from error


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
