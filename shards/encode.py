"""One source sample as it stands in a shard: a small RGB PNG over white, and its labels as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from io import BytesIO
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards import png
from shards.cli import InputError
from shards.sources import Sample

PIXEL_CAP = 1 << 24  # pixels of a source image (4096 x 4096): a decompression bomb stops here
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # what Pillow gives for PNGs of up to 8 bits a channel


class Encoded(NamedTuple):
    """A sample's key and the bytes of its two members."""

    key: str
    image: bytes
    label: bytes


def encode(samples: Sequence[Sample], *, crop: int, size: int) -> list[Encoded]:
    """The samples' members; InputError names the first bad image. The work of a worker process."""
    return [
        Encoded(
            sample.key,
            prepare_image(sample.read_image(), sample.where, crop=crop, size=size),
            json.dumps(sample.labels, sort_keys=True).encode(),
        )
        for sample in samples
    ]


def prepare_image(data: bytes, where: str, *, crop: int, size: int) -> bytes:
    """One source PNG as a packed one: RGB, ``size`` x ``size``, over white.

    Raises InputError, naming ``where``, for data that is no whole PNG, has unfit dimensions or more than 8
    bits a channel.
    """
    image = _decode(data, where, crop)
    left, top = (image.width - crop) // 2, (image.height - crop) // 2
    cropped = image.crop((left, top, left + crop, top + crop)).convert("RGBA")
    # On premultiplied alpha ("RGBa"), so that the colour of transparent pixels never bleeds in.
    small = cropped.convert("RGBa").resize((size, size), Image.Resampling.BICUBIC)
    # Over white, premultiplied: c + (255 - alpha). The filter's overshoot may leave c a little above alpha.
    pixels = np.asarray(small).astype(np.int16)
    white = np.minimum(pixels[..., :3] + (255 - pixels[..., 3:]), 255).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(white).save(stream, "PNG")
    return stream.getvalue()


def _decode(data: bytes, where: str, crop: int) -> Image.Image:
    dimensions = png.size_of(data)
    if dimensions is None:
        raise InputError(f"{where}: not a PNG image")
    width, height = dimensions
    if width * height > PIXEL_CAP:
        raise InputError(f"{where}: {width} x {height} pixels; at most {PIXEL_CAP} in all are allowed")
    if crop > min(width, height):
        raise InputError(f"{where}: {width} x {height} pixels, too small for --crop {crop}")
    try:
        # Decoding alone would let a cut end or a wrong checksum pass; verify() leaves the image unusable.
        Image.open(BytesIO(data), formats=("PNG",)).verify()
        image = Image.open(BytesIO(data), formats=("PNG",))
        image.load()
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        raise InputError(f"{where}: truncated or damaged PNG ({_reason(error)})") from error
    if image.mode not in MODES:
        raise InputError(f"{where}: pixel format {image.mode}; allowed: {', '.join(MODES)}")
    return image


def _reason(error: Exception) -> str:
    text = str(error)
    # Pillow's "cannot identify image file <_io.BytesIO object at 0x...>" tells an address, not a reason.
    return type(error).__name__ if "BytesIO" in text or not text else text
