"""Columns of raw values become attributes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffbase.cli import InputError
from shards.schema import UNKNOWN, Attribute
from shards.sources.base import natural

Value = str | int | float | bool | None
FEW = 256


def attributes(
    values: Mapping[str, Sequence[Value]],
    left_out: Mapping[str, str],
    columns: Sequence[str],
    bins: int | None,
) -> tuple[tuple[Attribute, ...], list[list[int]], tuple[str, ...]]:
    """Schema, variants by attribute, and lines about what was left out."""
    known = values.keys() | left_out.keys()
    for name in columns:
        if name not in known:
            raise InputError(
                f"--columns {name}: no such field; there are: {', '.join(sorted(known)) or 'none'}"
            )
    schema, labels = [], []
    notes = [f"{name}: left out: {why}" for name, why in sorted(left_out.items())]
    for name in columns or sorted(values):
        if name not in values:
            continue
        column = values[name]
        distinct = {value for value in column if value is not None}
        if len(distinct) < 2:
            notes.append(f"{name}: left out: the same in all samples")
        elif len(distinct) > FEW or (len(distinct) > 8 and 2 * len(distinct) > len(column)):
            notes.append(f"{name}: left out: {len(distinct)} different values")
        else:
            words = sorted({str(value) for value in distinct}, key=natural)
            number = {word: i for i, word in enumerate(words)}
            schema.append(Attribute(name, len(words), tuple(words)))
            labels.append([UNKNOWN if value is None else number[str(value)] for value in column])
    return tuple(schema), labels, tuple(notes)
