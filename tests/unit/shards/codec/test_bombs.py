"""Images that claim to be larger than they may be, or become larger than they look."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from diffbase.cli import InputError
from shards.codec import light, resample
from shards.codec.decode import BadSample, decode_image
from shards.codec.encode import prepare, prepare_image
from tests.support.fuzz.examples import picture, pixels, saved


def head(width: int, height: int, colours: int = 2) -> bytes:
    """A PNG's IHDR chunk with its checksum."""
    data = b"IHDR" + struct.pack(">II", width, height) + bytes([8, colours, 0, 0, 0])
    return struct.pack(">I", 13) + data + struct.pack(">I", zlib.crc32(data))


def jpeg(width: int, height: int) -> bytes:
    whole = saved(picture().convert("RGB"), "JPEG")
    at = whole.index(b"\xff\xc0") + 5
    return whole[:at] + struct.pack(">HH", height, width) + whole[at + 4 :]


@pytest.mark.filterwarnings("error")  # Pillow warns of some
@pytest.mark.parametrize(
    ("width", "height"),
    [(10**9, 10**9), (2**32 - 1, 2**32 - 1), (8193, 8192), (2**31 - 1, 1), (13_000, 13_000)],
)
def test_large_png(width: int, height: int) -> None:
    whole = saved(picture().convert("RGB"), "PNG")
    with pytest.raises(
        InputError, match=f"x: {width} x {height} pixels; at most 67108864 in all are allowed"
    ):
        prepare_image(whole[:8] + head(width, height) + whole[33:], "x", crop=None, size=8)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("width", "height"), [(65_535, 65_535), (8193, 8192), (10_000, 10_000), (13_500, 13_500)]
)
def test_large_jpeg(width: int, height: int) -> None:
    with pytest.raises(
        InputError, match=f"x: {width} x {height} pixels; at most 67108864 in all are allowed"
    ):
        prepare_image(jpeg(width, height), "x", crop=None, size=8)


@pytest.mark.parametrize(
    "data", [jpeg(0, 5), jpeg(5, 0), saved(picture(), "PNG")[:8] + head(0, 5) + bytes(100)]
)
def test_no_pixels(data: bytes) -> None:
    with pytest.raises(InputError, match="x: not a PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF image"):
        prepare_image(data, "x", crop=None, size=8)


MANY = 6_000_000  # of the parts of a file of 64 MiB
PNG, JPEG = saved(picture().convert("RGB"), "PNG"), saved(picture().convert("RGB"), "JPEG")
SCAN = JPEG.index(b"\xff\xda")


def test_damaged_metadata_is_no_news(recwarn: pytest.WarningsRecorder) -> None:
    """Pillow warns of it, with no name of a file."""
    exif = b"Exif\0\0MM\0*\0\0\0\x08\xff\xff" + b"\x01\x12\0\x03\xff\xff\xff\xff" * 2
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    prepare_image(JPEG[:2] + segment + JPEG[2:], "x", crop=None, size=8)
    assert not recwarn.list
    ImageOps.exif_transpose(Image.open(io.BytesIO(JPEG[:2] + segment + JPEG[2:])))
    assert recwarn.list


@pytest.mark.parametrize(
    "data",
    [
        PNG[:33]
        + (struct.pack(">I", 0) + b"teSt" + struct.pack(">I", zlib.crc32(b"teSt"))) * MANY
        + PNG[33:],
        JPEG[:2] + b"\xff\xfe\0\2" * MANY + JPEG[2:],
        JPEG[:2] + b"\xff" * MANY + JPEG[2:],
        JPEG[:SCAN] + b"\xff\xe3\0\2" * MANY + JPEG[SCAN:],
        JPEG[:SCAN] + b"\xff" * MANY + JPEG[SCAN:],
    ],
    ids=["chunks", "segments", "fill", "segments behind the head", "fill behind the head"],
)
def test_millions_of_parts(data: bytes) -> None:
    """Each of which costs a library some microseconds."""
    with pytest.raises(InputError, match=r"x: (not a PNG|truncated or damaged \w+ \(.*parts)"):
        prepare_image(data, "x", crop=None, size=8)
    if data[:2] == PNG[:2]:
        with pytest.raises(BadSample, match="damaged PNG"):
            decode_image(data, np.empty_like(pixels()))


@pytest.mark.filterwarnings("error")
def test_second_head() -> None:
    """Whose size a library might take instead of the one that was checked."""
    whole = saved(picture().convert("RGB"), "PNG")
    for size in ((8000, 8000), (12, 20), (10**9, 10**9)):
        twice = whole[:33] + head(*size) + whole[33:]
        with pytest.raises(InputError, match="x: truncated or damaged PNG"):
            prepare_image(twice, "x", crop=None, size=8)
        with pytest.raises(BadSample, match="damaged PNG"):
            decode_image(twice, np.empty_like(pixels()))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.binary(max_size=40))
def test_jpeg_size_is_pillows(width: int, height: int, progressive: bool, comment: bytes) -> None:
    image = Image.new("RGB", (width, height))
    for data in (
        saved(image, "JPEG", progressive=progressive, comment=comment),
        saved(image.convert("L"), "JPEG"),
    ):
        assert light.jpeg(data).size == Image.open(io.BytesIO(data)).size == (width, height)
        # Bytes between two segments, and a marker with bytes to fill up, as some cameras write them.
        assert light.jpeg(data[:2] + b"\0\0\xff\xff" + data[2:]).size == (width, height)
        for none in (data[:20], b"\xff\xd8" + bytes(1000)):
            with pytest.raises(ValueError, match="no frame"):
                light.jpeg(none)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_jpeg_size_of_anything(data: bytes) -> None:
    with suppress(ValueError):
        size = light.jpeg(b"\xff\xd8\xff" + data).size
        assert size and all(0 <= edge <= 65_535 for edge in size)


def test_transparency_of_colours_that_a_palette_has_not() -> None:
    """Pillow finds out when it converts the pixels, after it has read them."""
    image = picture().convert("P")
    image.info["transparency"] = bytes(300)
    with pytest.raises(InputError, match=r"x: damaged image \(palette index out of range\)"):
        prepare(image, "x", None, 8)


@pytest.mark.parametrize("size", [1, 7, 40, 90])
def test_large_images_are_computed_in_pieces(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """With the same pixels."""
    given = np.random.default_rng(0).integers(0, 256, (40, 40, 4), np.uint8)
    given[:20, :, 3] = 128
    whole = resample.resize(resample.over_white(given), size)
    monkeypatch.setattr(resample, "PIECE", 77)
    assert np.array_equal(resample.resize(resample.over_white(given), size), whole)
