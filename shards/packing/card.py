"""The dataset card: ``card.html``, one file that shows what was packed, for people.

A contact sheet of samples taken evenly from all shards, and how often each variant of each label occurs. It
needs nothing from outside: the sheet is a PNG within it. The same data give the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from diffbase.files import write_atomic
from diffbase.page.kit import Html, html
from diffbase.page.pictures import data_uri
from shards.codec.decode import decode_image
from shards.header import Shard
from shards.schema import UNKNOWN, Attribute
from shards.table import Row

FILE = "card.html"
COLUMNS, ROWS = 12, 6  # of the contact sheet
TILE = 96  # pixels; the edge of larger images on the sheet


def write_card(
    folder: Path,
    title: str,
    facts: Mapping[str, object],
    schema: Sequence[Attribute],
    counts: Mapping[str, Counter[int]],
    samples: Sequence[tuple[Shard, Row]],
    size: int,
    encoding: str,
) -> None:
    """Write ``folder``'s card.html.

    ``facts`` are the rows of its first table, ``counts`` the number of samples by variant of each attribute,
    ``samples`` all that were packed, of edge ``size`` pixels.
    """
    sheet = html.picture(data_uri(_contact_sheet(folder, samples, size, encoding)), "Contact sheet")
    histograms = [_histogram(a, counts[a.name]) for a in schema]
    parts = [html.table("tt", (), facts.items()), html.text(sheet), html.block("columns", histograms)]
    write_atomic(folder / FILE, html.page(title, parts).encode())


def _histogram(attribute: Attribute, counts: Counter[int]) -> Html:
    most = max(counts.values(), default=1)
    unknown = (UNKNOWN,) * (UNKNOWN in counts)
    rows = [
        (attribute.said(v), counts[v], html.bar([("share", 0, counts[v] / most)]))
        for v in (*range(attribute.variants), *unknown)
    ]
    return html.section(attribute.name, html.table("tnt", (), rows))


def _contact_sheet(
    folder: Path, samples: Sequence[tuple[Shard, Row]], size: int, encoding: str
) -> np.ndarray:
    """Up to COLUMNS x ROWS images, evenly taken from the samples, in their order."""
    count = min(len(samples), COLUMNS * ROWS)
    edge = min(size, TILE)
    columns = min(count, COLUMNS)
    sheet = Image.new("RGB", (columns * (edge + 2) + 2, -(-count // columns) * (edge + 2) + 2), "white")
    pixels = np.empty((size, size, 3), np.uint8)
    for place in range(count):
        shard, (_, offset, _, length, *_) = samples[place * len(samples) // count]
        with (folder / shard.name).open("rb") as file:
            file.seek(offset)
            decode_image(file.read(length), pixels, encoding)
        tile = Image.fromarray(pixels).resize((edge, edge), Image.Resampling.BICUBIC)
        row, column = divmod(place, columns)
        sheet.paste(tile, (2 + column * (edge + 2), 2 + row * (edge + 2)))
    return np.asarray(sheet)
