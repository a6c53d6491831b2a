"""The dataset card: ``card.html``, one file that shows what was packed, for people.

A contact sheet of samples taken evenly from all shards, and how often each variant of each label occurs. It
needs nothing from outside: the sheet is a PNG within it. The same data give the same bytes.
"""

from __future__ import annotations

import base64
import html
from collections import Counter
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from diffbase.files import write_atomic
from shards.codec.decode import decode_image
from shards.schema import Attribute
from shards.table import Row, Shard

FILE = "card.html"
COLUMNS, ROWS = 12, 6  # of the contact sheet
TILE = 96  # pixels; the edge of larger images on the sheet

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
img { image-rendering: pixelated; max-width: 100% }
h2 { font-size: 1rem; margin: 1.5rem 0 .3rem } section { break-inside: avoid } main { columns: 20rem }
td { padding: 0 .4rem; white-space: nowrap } td.n { text-align: right; font-variant-numeric: tabular-nums }
td.b { width: 100% } td.b div { background: #4a78b5; height: .7rem }
"""


def write_card(
    folder: Path,
    title: str,
    facts: Mapping[str, object],
    schema: Sequence[Attribute],
    variant_names: Mapping[str, tuple[str, ...]],
    counts: Mapping[str, Counter[int]],
    samples: Sequence[tuple[Shard, Row]],
    size: int,
    encoding: str,
) -> None:
    """Write ``folder``'s card.html.

    ``facts`` are the rows of its first table, ``counts`` the number of samples by variant of each attribute,
    ``samples`` all that were packed, of edge ``size`` pixels.
    """
    cell = html.escape
    rows = "".join(f"<tr><td>{cell(k)}</td><td>{cell(str(v))}</td></tr>\n" for k, v in facts.items())
    sections = "".join(
        _histogram(attribute, variant_names.get(attribute.name, ()), counts[attribute.name])
        for attribute in schema
    )
    sheet = base64.b64encode(_contact_sheet(folder, samples, size, encoding)).decode()
    page = (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{cell(title)}</title>\n'
        f"<style>{_STYLE}</style>\n<h1>{cell(title)}</h1>\n<table>\n{rows}</table>\n"
        f'<p><img alt="Contact sheet" src="data:image/png;base64,{sheet}"></p>\n'
        f"<main>\n{sections}</main>\n</html>\n"
    )
    write_atomic(folder / FILE, page.encode())


def _histogram(attribute: Attribute, names: Sequence[str], counts: Counter[int]) -> str:
    most = max(counts.values(), default=1)
    lines = []
    for variant in range(attribute.variants):
        name = html.escape(names[variant]) if names else str(variant)
        share = 100 * counts[variant] / most
        lines.append(
            f'<tr><td>{name}</td><td class="n">{counts[variant]}</td>'
            f'<td class="b"><div style="width:{share:.1f}%"></div></td></tr>\n'
        )
    return f"<section><h2>{html.escape(attribute.name)}</h2>\n<table>\n{''.join(lines)}</table></section>\n"


def _contact_sheet(folder: Path, samples: Sequence[tuple[Shard, Row]], size: int, encoding: str) -> bytes:
    """A PNG of up to COLUMNS x ROWS images, evenly taken from the samples, in their order."""
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
    stream = BytesIO()
    sheet.save(stream, "PNG")
    return stream.getvalue()
