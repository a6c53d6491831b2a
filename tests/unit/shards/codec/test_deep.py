"""Any depth of pixels becomes 8 bits by one rule: that of numpy's whole numbers."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from diffbase.cli import InputError
from shards.codec.deep import _rounded
from shards.codec.encode import decode_source, prepare
from shards.codec.orientation import Picture
from shards.codec.resample import over_white
from tests.support.fuzz.examples import saved
from tests.support.image_files import CHANNELS, chunk, libdeflate, png_file, tiff_file

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))
SEEDS = st.integers(0, 999)


def drawn(seed: int, sides: tuple[int, int], channels: int, depth: int) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, 1 << depth, (*sides, channels), np.uint16)


def rgba(picture: Picture) -> NDArray[np.uint8]:
    pixels = np.asarray(picture.convert("RGBA")) if isinstance(picture, Image.Image) else picture
    opaque = np.full((*pixels.shape[:2], 4 - pixels.shape[2]), 255, np.uint8)
    return np.concatenate([pixels, opaque], 2)


def expected(samples: NDArray[np.uint16], depth: int) -> NDArray[np.uint8]:
    """Grey, grey and alpha, RGB or RGBA in eight bits, by rounding."""
    most = (1 << depth) - 1
    eight = ((samples.astype(np.int64) * 510 + most) // (2 * most)).astype(np.uint8)
    opaque = np.full_like(eight[..., :1], 255)
    grey = eight[..., :1]
    return {
        1: lambda: np.concatenate([grey, grey, grey, opaque], 2),
        2: lambda: np.concatenate([grey, grey, grey, eight[..., 1:]], 2),
        3: lambda: np.concatenate([eight, opaque], 2),
        4: lambda: eight,
    }[samples.shape[2]]()


def test_rounding_of_every_value() -> None:
    values = np.arange(65536, dtype=np.uint16)
    np.testing.assert_array_equal(_rounded(values >> 8, values & 255), np.rint(values / 257))


@settings(max_examples=80, deadline=None)
@given(
    kind=st.sampled_from([(d, 0) for d in (1, 2, 4, 8, 16)] + [(d, c) for d in (8, 16) for c in (2, 4, 6)]),
    sides=SIDES,
    seed=SEEDS,
    filters=st.lists(st.integers(0, 4), min_size=1, max_size=3),
    interlaced=st.booleans(),
    fast=st.booleans(),
)
def test_png(fast, kind, sides, seed, filters, interlaced) -> None:
    depth, colour = kind
    samples = drawn(seed, sides, CHANNELS[colour], depth)
    data = png_file(samples, depth, colour, filters=filters, interlaced=interlaced)
    with libdeflate(fast):
        np.testing.assert_array_equal(rgba(decode_source(data, "x")), expected(samples, depth))


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from([(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)]),
    sides=SIDES,
    seed=SEEDS,
    fast=st.booleans(),
)
def test_transparent_colour_of_a_png(fast, kind, sides, seed) -> None:
    depth, colour = kind
    samples = drawn(seed, sides, CHANNELS[colour], depth)
    clear = samples[0, 0]
    samples[-1, -1] = clear ^ 1  # a neighbour, which 8 bits may not tell apart
    data = png_file(samples, depth, colour, before=chunk(b"tRNS", clear.astype(">u2").tobytes()))
    reference = expected(samples, depth)
    reference[(samples == clear).all(2), 3] = 0
    with libdeflate(fast):
        found = prepare(decode_source(data, "x"), "x", None, min(sides))
    top, left = ((side - min(sides)) // 2 for side in sides)
    square = reference[top : top + min(sides), left : left + min(sides)]
    np.testing.assert_array_equal(found, over_white(square)[..., :3])


@settings(max_examples=80, deadline=None)
@given(
    channels=st.sampled_from([1, 3, 4]),
    deep=st.booleans(),
    order=st.sampled_from("<>"),
    deflated=st.booleans(),
    sides=SIDES,
    seed=SEEDS,
)
def test_tiff(channels: int, deep: bool, order: str, deflated: bool, sides, seed) -> None:
    depth = 16 if deep else 8
    samples = drawn(seed, sides, channels, depth).astype(np.uint16 if deep else np.uint8)
    data = tiff_file(samples, order, deflated=deflated)
    np.testing.assert_array_equal(rgba(decode_source(data, "x")), expected(samples, depth))


@pytest.mark.parametrize("deflated", [False, True])
def test_tiff_whose_white_is_zero(deflated: bool) -> None:
    for kind in (np.uint8, np.uint16):
        samples = drawn(0, (5, 6), 1, 8 * np.dtype(kind).itemsize).astype(kind)
        data = tiff_file(samples, deflated=deflated, photometric=(262, "H", [0]))
        reference = expected(np.iinfo(kind).max - samples, 8 * samples.dtype.itemsize)
        np.testing.assert_array_equal(rgba(decode_source(data, "x")), reference)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("samples", "tags"),
    [
        (np.zeros((4, 4, 1), np.float32), {"format": (339, "H", [3])}),
        (np.zeros((4, 4, 1), np.int32), {"format": (339, "H", [2])}),
        (np.zeros((4, 4, 1), np.int16), {"format": (339, "H", [2])}),
        (np.zeros((4, 4, 1), np.uint32), {}),
        (np.zeros((4, 4, 3), np.uint32), {}),
        (np.zeros((4, 4, 4), np.uint16), {"premultiplied": (338, "H", [1])}),
        (np.zeros((4, 4, 4), np.uint16), {"cmyk": (262, "H", [5]), "no alpha": (338, "H", [0])}),
        (np.zeros((4, 4, 1), np.uint16), {"12 bits": (258, "H", [12])}),
        (np.zeros((4, 4, 1), np.uint16), {"from the right": (266, "H", [2])}),
        (
            np.zeros((4, 4, 3), np.uint16),
            {"planes": (284, "H", [2]), "at": (273, "I", [8, 40, 72]), "long": (279, "I", [32] * 3)},
        ),
    ],
)
def test_what_is_not_read(samples: NDArray[np.generic], tags, order: str, deflated: bool) -> None:
    """Rather than with wrong pixels."""
    with pytest.raises(InputError, match=r"^x: (pixel format|truncated or damaged TIFF)"):
        decode_source(tiff_file(samples, order, deflated=deflated, **tags), "x")


@pytest.mark.parametrize("mode", ["I", "F", "LAB"])
def test_modes_that_are_not_read(mode: str) -> None:
    with pytest.raises(InputError, match=rf"^x: pixel format {mode}\S*; allowed: 1, L, LA, P, PA, RGB, RGBA"):
        decode_source(saved(Image.new(mode, (5, 5)), "TIFF"), "x")


@pytest.mark.parametrize("masks", [(), (0xF800, 0x7E0, 0x1F), (0x7C00, 0x3E0, 0x1F)])
def test_bmp_of_16_bits_for_all_colours(masks: tuple[int, ...]) -> None:
    samples = drawn(0, (4, 6), 1, 16)
    at = 54 + 4 * len(masks)
    head = struct.pack("<2sIII", b"BM", at + 48, 0, at)
    info = struct.pack("<IiiHHIIiiII", 40, 6, 4, 1, 16, 3 * bool(masks), 48, 0, 0, 0, 0)
    data = head + info + struct.pack(f"<{len(masks)}I", *masks) + samples.astype("<u2").tobytes()
    stock = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    np.testing.assert_array_equal(rgba(decode_source(data, "x")), stock)


def test_grey_of_16_bits_by_pillow() -> None:
    values = np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64)
    for form in ("PNG", "TIFF"):
        found = rgba(decode_source(saved(Image.fromarray(values), form), "x"))
        np.testing.assert_array_equal(found[..., 0], np.rint(values / 257))
