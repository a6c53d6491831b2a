"""The dataset card: ``card.html``, one file that shows what was packed, for people.

A contact sheet of samples taken evenly from all shards, and of each variant of each label its name or number,
how often it occurs and the first sample that has it. It needs nothing from outside: the pictures are PNGs
within it. The same data give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import Image

from diffbase.files import write_atomic
from diffbase.page.kit import Html, html
from diffbase.page.pictures import data_uri
from shards.codec.fast_decode import decoder
from shards.header import Shard
from shards.schema import UNKNOWN, Attribute
from shards.tables.rows import Row

FILE = "card.html"
COLUMNS, ROWS = 12, 6  # of the contact sheet
TILE = 96  # pixels; the edge of larger images on the sheet
EXAMPLE, EXAMPLES = 32, 512  # pixels of a variant's picture; variants that have one

Packed = tuple[Shard, Row]
"""A sample: its shard, and where it lies in it."""


class Samples(Protocol):
    """Those that were packed, in order; a list is one."""

    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> Packed: ...
    def __iter__(self) -> Iterator[Packed]: ...


def write_card(
    folder: Path,
    title: str,
    facts: Mapping[str, object],
    schema: Sequence[Attribute],
    counts: Mapping[str, Counter[int]],
    samples: Samples,
    size: int,
    encoding: str,
) -> None:
    """Write ``folder``'s card.html.

    ``facts`` are the rows of its first table, ``counts`` the number of samples by variant of each attribute,
    ``samples`` all that were packed, of edge ``size`` pixels.
    """
    pictures = partial(_picture, folder, size=size, encoding=encoding)
    sheet = html.picture(data_uri(_contact_sheet(samples, pictures, min(size, TILE))), "Contact sheet")
    examples = {
        of: html.picture(data_uri(np.asarray(_scaled(pictures(sample), EXAMPLE))), "")
        for of, sample in _examples(schema, counts, samples).items()
    }
    histograms = [_histogram(a, counts[a.name], examples) for a in schema]
    parts = [html.table("tt", (), facts.items()), html.text(sheet), html.block("columns", histograms)]
    write_atomic(folder / FILE, html.page(title, parts).encode())


def _histogram(attribute: Attribute, counts: Counter[int], examples: Mapping[tuple[str, int], Html]) -> Html:
    most = max(counts.values(), default=1)
    unknown = (UNKNOWN,) * (UNKNOWN in counts)
    rows = [
        (
            examples.get((attribute.name, v), ""),
            attribute.said(v),
            counts[v],
            html.bar([("share", 0, counts[v] / most)]),
        )
        for v in (*range(attribute.variants), *unknown)
    ]
    return html.section(attribute.name, html.table("ttnt", (), rows))


def _examples(
    schema: Sequence[Attribute], counts: Mapping[str, Counter[int]], samples: Samples
) -> dict[tuple[str, int], Packed]:
    """The first sample of each variant, of the first EXAMPLES that occur."""
    missing = {(a.name, v) for a in schema for v in range(a.variants) if counts[a.name][v]}
    found: dict[tuple[str, int], Packed] = {}
    for sample in samples:
        if not missing or len(found) >= EXAMPLES:
            break
        for attribute, variant in zip(schema, sample[1][-1], strict=True):
            if (of := (attribute.name, variant)) in missing:
                missing.remove(of)
                found[of] = sample
    return found


def _contact_sheet(samples: Samples, pictures: Callable[[Packed], Image.Image], edge: int) -> np.ndarray:
    """Up to COLUMNS x ROWS images, evenly taken from the samples, in their order."""
    count = min(len(samples), COLUMNS * ROWS)
    columns = min(count, COLUMNS)
    sheet = Image.new("RGB", (columns * (edge + 2) + 2, -(-count // columns) * (edge + 2) + 2), "white")
    for place in range(count):
        row, column = divmod(place, columns)
        tile = _scaled(pictures(samples[place * len(samples) // count]), edge)
        sheet.paste(tile, (2 + column * (edge + 2), 2 + row * (edge + 2)))
    return np.asarray(sheet)


def _picture(folder: Path, sample: Packed, *, size: int, encoding: str) -> Image.Image:
    """A packed image of edge ``size``."""
    shard, (_, offset, _, length, *_) = sample
    pixels = np.empty((size, size, 3), np.uint8)
    with (folder / shard.name).open("rb") as file:
        file.seek(offset)
        decoder(encoding)(file.read(length), pixels)
    return Image.fromarray(pixels)


def _scaled(picture: Image.Image, edge: int) -> Image.Image:
    return picture.resize((edge, edge), Image.Resampling.BICUBIC)
