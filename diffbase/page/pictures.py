"""Grids of images, as PNG files and within pages."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from diffbase.cli import InputError
from diffbase.files import check_writable, renamed

COLUMNS = 8
"""Images in a row of a grid."""


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


def with_row_names(tiled_HWC: np.ndarray, names: Sequence[str], size: int = 14) -> np.ndarray:
    """``tiled_HWC`` of ``grid`` with a margin on its left, where every row has its name."""
    height, font = len(tiled_HWC), ImageFont.load_default(size)
    margin = Image.new("RGB", (int(max(map(font.getlength, names))) + size, height), "white")
    pen = ImageDraw.Draw(margin)
    for row, name in enumerate(names):
        pen.text((size // 2, height * (row + 0.5) / len(names)), name, "black", font, anchor="lm")
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
