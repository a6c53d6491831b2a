"""One avatar from its 18 labels: the order of drawing, the canvas and the PNG's bytes. Needs skia."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping
from functools import lru_cache

import numpy as np
import skia
from numpy.typing import NDArray

from shards.standin.artwork.eyes import draw_brows, draw_eyes
from shards.standin.artwork.facial_hair import draw_facial_hair
from shards.standin.artwork.geometry import CANVAS, CENTER_X
from shards.standin.artwork.glasses import draw_glasses
from shards.standin.artwork.hair import draw_hair_behind, draw_hair_in_front
from shards.standin.artwork.head import draw_head, draw_nose_and_mouth
from shards.standin.artwork.palette import FACE, HAIR


def draw(canvas: skia.Canvas, labels: Mapping[str, int]) -> None:
    """Draw an avatar on a transparent canvas, from the back to the front."""
    skin, hair = FACE[labels["face_color"]], HAIR[labels["hair_color"]]
    face, chin = labels["face_shape"], labels["chin_length"]
    canvas.save()
    canvas.translate(CENTER_X, 0)
    draw_hair_behind(canvas, labels["hair"], hair)
    draw_head(canvas, skin, face, chin)
    draw_facial_hair(canvas, labels["facial_hair"], hair, skin, face, chin)
    draw_nose_and_mouth(canvas, skin)
    draw_eyes(canvas, labels, skin)
    draw_brows(canvas, labels, skin, hair)
    draw_hair_in_front(canvas, labels["hair"], hair, skin)
    draw_glasses(canvas, labels["glasses"], labels["glasses_color"])
    canvas.restore()


@lru_cache(maxsize=1)
def _surface() -> skia.Surface:
    # One canvas per process: allocating a million bytes for each image costs more than clearing them.
    return skia.Surface(CANVAS, CANVAS)


def render(labels: Mapping[str, int]) -> NDArray[np.uint8]:
    """The avatar as uint8 [500, 500, 4], RGBA with straight (not premultiplied) alpha."""
    surface = _surface()
    with surface as canvas:
        canvas.clear(skia.ColorTRANSPARENT)
        draw(canvas, labels)
    pixels: NDArray[np.uint8] = surface.toarray(colorType=skia.kRGBA_8888_ColorType)
    return pixels


def png_bytes(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """A valid 8-bit RGBA PNG, written for speed.

    Flat artwork repeats itself along a row, so zlib's fastest level on unfiltered rows is both the fastest
    and, among fast settings, the smallest (``benchmarks/render.py`` times it).
    """
    height, width, channels = pixels_HWC.shape
    rows = np.zeros((height, 1 + width * channels), np.uint8)  # the leading 0 of a row: no filter
    rows[:, 1:] = pixels_HWC.reshape(height, width * channels)
    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    data = zlib.compress(rows.data, 1)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
