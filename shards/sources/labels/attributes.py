"""Columns, however they were read, together become the labels of the samples."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from diffbase.cli import InputError
from shards.schema import ATTRIBUTES_CAP, NAME_CAP, UNKNOWN, VARIANTS_CAP, Attribute
from shards.sources.base import Asked
from shards.sources.labels.columns import Column, LeftOut, shown

BINS_CAP = 1000


@dataclass(frozen=True)
class Labelled:
    """What columns tell of the samples, in these' order: ``variants`` are each attribute's."""

    schema: tuple[Attribute, ...]
    variants: dict[str, Sequence[int]]
    notes: tuple[str, ...]


def as_shown(asked: Asked) -> Asked:
    """``asked`` with the names of columns as a table's are: any spaces are one."""
    key, image = (None if name is None else shown(name) for name in (asked.key, asked.image_field))
    return replace(asked, columns=tuple(map(shown, asked.columns)), key=key, image_field=image)


def check_bins(bins: int | None) -> None:
    """InputError for a number of quantiles that is not allowed."""
    if bins is not None and not 2 <= bins <= BINS_CAP:
        raise InputError(f"--bins {bins}: allowed: 2 to {BINS_CAP}")


def labelled(
    columns: dict[str, Column], asked: Asked, rows: Sequence[int], training: Sequence[bool], where: str
) -> Labelled:
    """The labels of the samples that have these ``rows``; ``training`` says which of them are trained on.

    The ``columns`` are used up. InputError, which begins with ``where``, for one that is asked for and
    cannot be a label, and for more than an index may tell.
    """
    if len(set(asked.columns)) < len(asked.columns):
        raise InputError("--columns: a name is given twice")
    left: dict[str, list[str]] = {}  # names of columns by the reason
    schema: list[Attribute] = []
    notes: list[str] = []
    variants: dict[str, Sequence[int]] = {}
    for name in asked.columns or list(columns):
        column = columns.pop(name)
        try:
            if not 1 <= len(name) <= NAME_CAP:
                raise LeftOut(f"a name of no or more than {NAME_CAP} characters")
            attribute, found = column.attribute(rows, training, asked.bins)
        except LeftOut as error:
            if asked.columns:
                raise InputError(f"{where}: column {name!r:.80}: {error}") from error
            left.setdefault(str(error), []).append(name)
            continue
        schema.append(attribute)
        variants[name] = found
        if column.binned:
            notes.append(f"{name}: binned: {some(list(attribute.names))}")
    total = sum(attribute.variants for attribute in schema)
    if len(schema) > ATTRIBUTES_CAP or total > VARIANTS_CAP:
        raise InputError(
            f"{where}: {len(schema)} labels of {total} variants; at most {ATTRIBUTES_CAP} of "
            f"{VARIANTS_CAP} in all are allowed: --columns takes fewer"
        )
    unknown = Counter({name: list(found).count(UNKNOWN) for name, found in variants.items()})
    if +unknown:
        told = [f"{name} {count}" for name, count in unknown.items() if count]
        notes.append(f"unknown, of {len(rows)} samples: {some(told)}")
    notes += [f"left out: {some(names)}: {why}" for why, names in left.items()]
    return Labelled(tuple(schema), variants, tuple(notes))


def no_column(name: str, there: Sequence[str]) -> str:
    """That there is no such column, which ones there are, and the nearest."""
    near = difflib.get_close_matches(name[:100], [n[:100] for n in there], n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"no column {name!r:.80}; there are: {some(there) or 'none'}{meant}"


def some(names: Sequence[str]) -> str:
    """The first of many names, for people."""
    most = 20
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:80] or "(without a name)" for name in names[:most]) + more
