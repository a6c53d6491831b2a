"""Variants without a training image: a model can be asked for them, and knows nothing of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from diffbase.line import printable

MOST = 10  # names in a line


def untrained(folder: Path) -> list[str]:
    """A line for each attribute of a packed folder with a variant that no sample of ``train`` has."""
    return list(map(printable, _untrained(folder)))


def _untrained(folder: Path) -> Iterator[str]:
    # Not on top: the command answers --help without loading numpy.
    import numpy as np

    from shards.table import Index

    index = Index.load(folder)
    if "train" not in index.splits:
        return
    seen = [np.zeros(attribute.variants, bool) for attribute in index.schema]
    for rows in index.split("train").portions():
        for column, there in enumerate(seen):
            labels = rows["labels"][:, column]
            there[labels[labels >= 0] if labels.dtype.kind == "i" else labels] = True
    for attribute, there in zip(index.schema, seen, strict=True):
        missing = np.flatnonzero(~there).tolist()
        if missing:
            names = ", ".join(attribute.said(variant) for variant in missing[:MOST])
            more = f" and {len(missing) - MOST} more" if len(missing) > MOST else ""
            yield (
                f"warning: {attribute.name}: no training image of {names}{more} ({len(missing)} of "
                f"{attribute.variants} variants)"
            )
