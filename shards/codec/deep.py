"""Pixels of an opened image in 8 bits per channel: 16 are rounded (v / 257), where Pillow cuts or clips them.

Grey of 16 bits Pillow gives as it is. Of colours it gives the higher bytes; and of the same file, read in the
other order of bytes, the lower ones.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import TiffImagePlugin
from PIL.ImageFile import ImageFile

from shards.codec import png
from shards.codec.orientation import Picture

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")
GREY = ("I;16", "I;16B", "I;16N")
COLOURS = ("RGB", "RGBA", "RGBX")  # before ;16 and the order of bytes
OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
PHOTOMETRIC, BITS = 262, 258  # tags of TIFF
WHITE_IS_ZERO = 0


class PixelFormatError(ValueError):
    """The name of a pixel format that is not read: of more than 16 bits, of floats, or a rare one."""


def decoded(opened: Callable[[bytes], ImageFile], data: bytes) -> Picture:
    """The pixels of an image file; ``opened`` gives it before its pixels are decoded.

    Raises PixelFormatError, and whatever damage leads Pillow to.
    """
    image = opened(data)
    raw = _raw_mode(image)
    if raw == "LA;16B":
        pairs = np.asarray(opened(png.split_bytes(data)))
        grey, alpha = (_rounded(pairs[..., at], pairs[..., at + 1]) for at in (0, 2))
        return np.stack([grey, grey, grey, alpha], -1)
    if raw in GREY and image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.uint16)
        return _with_alpha(image, (values >> 8)[..., None], (values & 255)[..., None])
    if raw[:-4] in COLOURS and raw[-4:-1] == ";16":
        other, swapped = opened(data), raw[:-1] + OTHER_ORDER[raw[-1]]
        other.tile = [
            tile._replace(args=(swapped, *tile.args[1:]) if isinstance(tile.args, tuple) else swapped)
            for tile in other.tile
        ]
        return _with_alpha(image, np.asarray(image), np.asarray(other))
    deep = ";1" in raw and not raw.startswith("BGR;")  # those are 15 or 16 bits of all colours together
    if image.mode not in MODES or (deep and image.mode not in ("1", "P")):
        raise PixelFormatError(image.mode if image.mode not in MODES else raw)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and max(image.tag_v2.get(BITS, (1,))) > 8:
        raise PixelFormatError(f"{raw}, planes of 16 bits")
    image.load()
    _scale_transparency(image, raw)
    return image


def _raw_mode(image: ImageFile) -> str:
    """How the pixels stand in the file, by Pillow's name."""
    args = image.tile[0].args if image.tile else ""
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def _rounded(high: NDArray[np.integer], low: NDArray[np.integer]) -> NDArray[np.uint8]:
    """(256 high + low) / 257, rounded: high + (low - high) / 257."""
    difference = low.astype(np.int16) - high
    return (high + (difference > 128) - (difference < -128)).astype(np.uint8)


def _with_alpha(image: ImageFile, high: NDArray[np.integer], low: NDArray[np.integer]) -> NDArray[np.uint8]:
    """Grey or colours [H, W, C] as RGB, or as RGBA where a colour is transparent."""
    found = _rounded(high, low)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(PHOTOMETRIC) == WHITE_IS_ZERO:
        found = 255 - found
    if found.shape[2] == 1:
        found = found.repeat(3, 2)
    if (clear := image.info.get("transparency")) is not None:
        colour = np.array(clear)
        same = ((high == colour >> 8) & (low == colour & 255)).all(2, keepdims=True)
        found = np.concatenate([found, np.where(same, 0, 255).astype(np.uint8)], 2)
    return found


def _scale_transparency(image: ImageFile, raw: str) -> None:
    """The transparent grey of a PNG of 2 or 4 bits: Pillow scales the pixels, but not this."""
    clear = image.info.get("transparency")
    if raw in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if raw == "L;2" else 17)
