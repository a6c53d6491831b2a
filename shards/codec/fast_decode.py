"""Packed images to pixels, as fast as what is installed allows.

PNGs as the packer writes them need numpy alone (``shards.codec.png``). Other PNGs and lossless WebP are
OpenCV's where it is installed: faster than Pillow, and free of Python's lock. The pixels are the same. OpenCV
lets some damage pass that Pillow reports: it is only for bytes whose checksum was compared with the index;
formats are held to what ``shards.codec.decode`` accepts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from shards.codec import KEPT, png
from shards.codec.decode import BadSample, decode_image, webp_size
from shards.codec.encode import check_head, decode_source, prepare

Decoder = Callable[[bytes, NDArray[np.uint8]], None]


def decoder(encoding: str) -> Decoder:
    """A function like ``decode_image`` for one encoding of packed images, by the fastest way there is."""
    if encoding == KEPT:
        return _kept
    other = _library(encoding)
    if encoding != "png":
        return other

    def decode(data: bytes, out: NDArray[np.uint8]) -> None:
        try:
            done = png.decode(data, out)
        except ValueError as error:
            raise BadSample(f"damaged PNG ({error})") from error
        if not done:
            other(data, out)

    return decode


def preparer(crop: int | None) -> Decoder:
    """A decoder for an image as somebody else made it: by the packer's own functions."""

    def decode(data: bytes, out: NDArray[np.uint8]) -> None:
        try:
            out[...] = prepare(decode_source(data, "image"), "image", crop, len(out))
        except InputError as error:
            raise BadSample(str(error).removeprefix("image: ")) from error

    return decode


def _kept(data: bytes, out: NDArray[np.uint8]) -> None:
    """Of a JPEG that was kept: of that size, and by one library, since each has its own pixels."""
    try:
        name, *size = check_head(data, "image")
    except InputError as error:
        raise BadSample(str(error).removeprefix("image: ")) from error
    if name != "JPEG" or size != list(out.shape[1::-1]):
        raise BadSample(f"not a JPEG of {out.shape[1]} x {out.shape[0]} pixels")
    preparer(None)(data, out)


def _library(encoding: str) -> Decoder:
    if encoding in ("png", "webp"):
        try:
            import cv2
        except ImportError:
            pass
        else:
            return _opencv(cv2, encoding)
    return lambda data, out: decode_image(data, out, encoding)


def _opencv(cv2: Any, encoding: str) -> Decoder:
    name = {"png": "PNG", "webp": "WebP"}[encoding]

    def decode(data: bytes, out: NDArray[np.uint8]) -> None:
        height, width, _ = out.shape
        if (png.size_of(data) if encoding == "png" else webp_size(data)) != (width, height):
            raise BadSample(f"not a {name} of {width} x {height} pixels")
        if encoding == "png" and data[24:26] != b"\x08\x02":  # 8 bits per channel, red green blue
            raise BadSample("not an RGB image")
        try:
            pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise BadSample(f"damaged {name} (OpenCV)") from error
        if pixels is None:
            raise BadSample(f"damaged {name}")
        if pixels.dtype != np.uint8 or pixels.shape != out.shape:
            raise BadSample("not an RGB image")
        cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=out)

    return decode
