"""Cartoon Set's CSV: one line per attribute, ``"eye_angle", 2, 3``, with the quoted name, the chosen variant
and the number of variants. Facts: https://google.github.io/cartoonset/.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from diffbase.cli import InputError
from diffbase.system_error import patiently
from shards.schema import CARTOON_SET

_VARIANTS = {attribute.name: attribute.variants for attribute in CARTOON_SET}


def parse_csv(path: Path) -> dict[str, int]:
    """``parse_csv_bytes`` for a file ``csX.csv``."""
    return parse_csv_bytes(patiently(path.read_bytes, path), str(path))


def parse_csv_bytes(data: bytes, where: str) -> dict[str, int]:
    """``parse_csv_text`` for UTF-8, with or without a byte order mark."""
    try:
        return parse_csv_text(data.decode("utf-8-sig"), where)
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: not a text file ({error.reason})") from error


def parse_csv_text(text: str, where: str) -> dict[str, int]:
    """The labels ``{name: variant}`` in the schema's order; ``where`` names the origin in errors.

    Accepts the official form (a space after each comma) and the form without the space, empty lines and any
    line ends. Raises InputError, with file and line, for a wrong name, a missing or doubled attribute, a
    variant out of range or a number of variants that differs from the schema's.
    """
    found: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            name, variant = _parse_line(line)
            if name in found:
                raise InputError(f"attribute {name!r} appears twice")
        except InputError as error:
            raise InputError(f"{where}, line {number}: {error}") from error
        found[name] = variant
    missing = [name for name in _VARIANTS if name not in found]
    if missing:
        raise InputError(f"{where}: attribute missing: {', '.join(missing)}")
    return {name: found[name] for name in _VARIANTS}


def is_cartoon(data: bytes) -> bool:
    """Whether a table has a line of Cartoon Set's, whole or with a wrong number."""
    for line in data.decode("utf-8-sig", "replace").splitlines():
        name, *numbers = (field.strip(' "') for field in line.split(","))
        # A table of labels may have a column, or a cell, that is called so.
        if name in _VARIANTS and len(numbers) == 2 and all(map(str.isdigit, numbers)):
            return True
    return False


@lru_cache(maxsize=1024)  # 217 lines are right, in a few spellings: a set of files is these over and over
def _parse_line(line: str) -> tuple[str, int]:
    """Name and variant; an InputError tells what is wrong."""
    try:
        (row,) = csv.reader([line], skipinitialspace=True, strict=True)
    except csv.Error as error:
        raise InputError(f"not a CSV ({error})") from error
    if len(row) != 3:
        raise InputError(f'expected "name", variant, variants; got {len(row)} fields')
    name = row[0].strip()
    if name not in _VARIANTS:
        raise InputError(f"unknown attribute {name!r}; allowed: {', '.join(_VARIANTS)}")
    variant, variants = map(_integer, row[1:])
    if variants != _VARIANTS[name]:
        raise InputError(f"{name} has {_VARIANTS[name]} variants, the file says {variants}")
    if not 0 <= variant < variants:
        raise InputError(f"{name} is {variant}; allowed: 0 to {variants - 1}")
    return name, variant


def _integer(field: str) -> int:
    field = field.strip()
    # str.isdigit and int() accept other scripts' digits and underscores; the format is plain ASCII.
    if not (field.isascii() and field.isdigit() and len(field) <= 9):
        raise InputError(f"expected a whole number, got {field!r}")
    return int(field)


def format_csv(labels: Mapping[str, int]) -> str:
    """The official CSV text of one avatar: ``"name", variant, variants`` lines in the schema's order."""
    return "".join(f'"{a.name}", {labels[a.name]}, {a.variants}\n' for a in CARTOON_SET)
