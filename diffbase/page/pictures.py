"""Grids of images, as PNG files and within pages."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffbase.cli import InputError
from diffbase.files import check_writable, renamed

COLUMNS = 8
"""Images in a row of a grid."""
SIZE, MARGIN = 14, 7
"""Of captions: the font's size and the space beside them, pixels."""
NO_CHARACTER = "\uffff"


def grid(images_BHWC: np.ndarray, columns: int, gap: int = 2, least: int = 96) -> np.ndarray:
    """Tile uint8 [B, H, W, 3] into one uint8 [height, width, 3] on white, row by row.

    Small images are enlarged by the smallest whole factor that makes them ``least`` pixels, unsmoothed.
    """
    factor = max(1, -(-least // images_BHWC.shape[1]))
    images = images_BHWC.repeat(factor, axis=1).repeat(factor, axis=2)
    count, height, width, _ = images.shape
    rows = -(-count // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[y : y + height, x : x + width] = image
    return canvas


def drawable(text: str) -> str:
    """``text`` with an escape for each character that Pillow's own font would show as a box, or not at all.

    It has hardly more than ASCII, and is the same on every machine.
    """
    font = ImageFont.load_default(SIZE)
    lacking = (_glyph(font, NO_CHARACTER), _glyph(font, ""))
    there = {c for c in set(text) if c == " " or (c.isprintable() and _glyph(font, c) not in lacking)}
    return "".join(c if c in there else ascii(c)[1:-1] for c in text)


def _glyph(font: Any, character: str) -> tuple[tuple[int, int], bytes]:
    drawn = font.getmask(character)
    return drawn.size, bytes(drawn)


def with_caption(image_HWC: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """``image_HWC``, uint8 [H, W, 3], below its caption: the first line black, those below it grey.

    A line that is wider than the image goes on below itself, broken between words where there are any.
    """
    font, width, step = ImageFont.load_default(SIZE), image_HWC.shape[1], round(1.4 * SIZE)
    rows = [(row, i == 0) for i, line in enumerate(lines) for row in _wrapped(drawable(line), font, width)]
    strip = Image.new("RGB", (width, step * len(rows) + SIZE // 2), "white")
    pen = ImageDraw.Draw(strip)
    for number, (row, first) in enumerate(rows):
        at = (MARGIN, step * number + step // 2 + SIZE // 4)
        pen.text(at, row, "black" if first else "dimgray", font, anchor="lm")
    return np.concatenate([np.asarray(strip), image_HWC])


def _wrapped(line: str, font: Any, width: int) -> list[str]:
    """``line`` in rows that fit ``width``, each of a character at least."""
    rows = [""]
    for word in re.findall(r"\S+\s*", line):
        if rows[-1] and font.getlength((rows[-1] + word).rstrip()) > width - 2 * MARGIN:
            rows.append("")
        for character in word:
            if rows[-1] and font.getlength((rows[-1] + character).rstrip()) > width - 2 * MARGIN:
                rows.append("")
            rows[-1] += character
    return [row.rstrip() for row in rows]


def with_row_names(tiled_HWC: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """``tiled_HWC`` of ``grid`` with a margin on its left, where every row has its name."""
    height, font, names = len(tiled_HWC), ImageFont.load_default(SIZE), list(map(drawable, names))
    margin = Image.new("RGB", (int(max(map(font.getlength, names))) + 2 * MARGIN, height), "white")
    pen = ImageDraw.Draw(margin)
    for row, name in enumerate(names):
        pen.text((MARGIN, height * (row + 0.5) / len(names)), name, "black", font, anchor="lm")
    return np.concatenate([np.asarray(margin), tiled_HWC], axis=1)


def save_grid(images_BHWC: np.ndarray, path: Path | str, columns: int = COLUMNS) -> None:
    """Write images, uint8 [B, H, W, 3], as one PNG, at most ``columns`` of them in a row.

    InputError for anything but such images, another suffix than .png or a folder that is not there.
    """
    check_png(path := Path(path))
    images = np.asarray(images_BHWC)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or not images.size:
        raise InputError(f"images: expected uint8 [B, H, W, 3], not {images.dtype} {list(images.shape)}")
    if columns < 1:
        raise InputError(f"columns {columns}: at least 1")
    save_png(grid(images, min(columns, len(images))), path)


def check_png(path: Path) -> None:
    """InputError unless ``path`` may become a PNG: its suffix says so, and its folder is there.

    OSError where that takes no files.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: the grid is a PNG; give a name that ends in .png")
    if not path.parent.is_dir():
        raise InputError(f"{path}: folder {path.parent} does not exist")
    check_writable(path.parent)


def save_png(image_HWC: np.ndarray, path: Path) -> None:
    """Write uint8 [H, W, 3] atomically."""
    with renamed(path) as temporary:
        Image.fromarray(image_HWC).save(temporary, format="PNG")


def data_uri(image_HWC: np.ndarray) -> str:
    """uint8 [H, W, 3] as the address of an image that a page holds itself."""
    stream = io.BytesIO()
    Image.fromarray(image_HWC).save(stream, format="PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
