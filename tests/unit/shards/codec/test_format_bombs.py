"""GIF, BMP, TIFF and AVIF files that claim more than they may be, or cost more than they look."""

from __future__ import annotations

import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from shards.codec import light
from shards.codec.encode import decode_source
from shards.codec.orientation import Directory, orientation
from tests.support.fuzz.examples import picture, saved
from tests.support.image_files import chunk, tiff_file

SIZES = [(65_535, 65_535), (8193, 8192), (13_500, 13_500)]
SMALL = np.zeros((4, 4, 3), np.uint8)


def gif(width: int, height: int) -> bytes:
    whole = saved(picture().convert("RGB"), "GIF")
    return whole[:6] + struct.pack("<HH", width, height) + whole[10:]


def gif_whose_picture_is_large(width: int, height: int) -> bytes:
    whole = saved(picture().convert("RGB"), "GIF")
    at = whole.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 24, 20))
    return whole[: at + 5] + struct.pack("<HH", width, height) + whole[at + 9 :]


def bmp(width: int, height: int) -> bytes:
    whole = saved(picture().convert("RGB"), "BMP")
    return whole[:18] + struct.pack("<ii", width, height) + whole[26:]


def bmp_from_the_top(width: int, height: int) -> bytes:
    return bmp(width, -height)


def tiff(width: int, height: int) -> bytes:
    return tiff_file(SMALL, width=(256, "I", [width]), height=(257, "I", [height]))


def tiff_lzw(width: int, height: int) -> bytes:
    size = {"width": (256, "I", [width]), "height": (257, "I", [height]), "rows": (278, "I", [height])}
    return tiff_file(SMALL, deflated=True, **size)


def avif(width: int, height: int) -> bytes:
    whole = saved(picture().convert("RGB"), "AVIF")
    at = whole.index(b"ispe") + 8
    return whole[:at] + struct.pack(">II", width, height) + whole[at + 8 :]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "made", [gif, gif_whose_picture_is_large, bmp, bmp_from_the_top, tiff, tiff_lzw, avif]
)
def test_large(made: Callable[[int, int], bytes], size: tuple[int, int]) -> None:
    """Told by the head, before a pixel is decoded."""
    width, height = size
    told = f"^x: {width} x {height} pixels; at most 67108864 in all are allowed"
    with pytest.raises(
        InputError, match=told if made is not avif else f"{told}|^x: truncated or damaged AVIF"
    ):
        decode_source(made(width, height), "x")


@pytest.mark.parametrize("made", [gif, bmp, tiff, tiff_lzw, avif])
def test_large_and_empty(made: Callable[[int, int], bytes]) -> None:
    """As large as may be, with few bytes behind it."""
    for size in ((8192, 8192), (32_767, 2048)):
        try:
            assert max(decode_source(made(*size), "x").size) == max(size)
        except InputError as error:
            assert str(error).startswith("x: truncated or damaged")


@pytest.mark.parametrize("made", [gif, bmp, tiff, avif])
def test_no_pixels(made: Callable[[int, int], bytes]) -> None:
    for size in ((0, 5), (5, 0)):
        with pytest.raises(InputError, match=r"^x: (not a PNG, JPEG, |truncated or damaged (GIF|TIFF|AVIF))"):
            data = made(*size)
            decode_source(
                data
                if made is not gif
                else data.replace(struct.pack("<HH", 24, 20), struct.pack("<HH", *size)),
                "x",
            )


def two_strips(count: int) -> bytes:
    """Each of nearly the whole picture: a library goes through all of them."""
    return tiff_file(
        SMALL,
        height=(257, "I", [8192]),
        width=(256, "I", [8192]),
        rows=(278, "I", [8191]),
        at=(273, "I", [8] * count),
        long=(279, "I", [48] * count),
    )


@pytest.mark.parametrize("count", [3, 1000, 200_000, 7_000_000])
def test_more_strips_than_there_is_room_for(count: int) -> None:
    with pytest.raises(InputError, match=r"^x: truncated or damaged TIFF \(too many parts\)"):
        decode_source(two_strips(count), "x")


def test_more_tiles_than_there_is_room_for() -> None:
    tiles = {"across": (322, "I", [1 << 20]), "down": (323, "I", [1]), "at": (324, "I", [8] * 100_000)}
    with pytest.raises(InputError, match=r"^x: truncated or damaged TIFF \(too many parts\)"):
        decode_source(tiff_file(SMALL, **tiles, long=(325, "I", [8] * 100_000)), "x")


def crowded(entries: int, size: int) -> bytes:
    """A directory of many entries, each as large as the file."""
    parts = b"".join(struct.pack("<HHII", n % 65536, 7, size, 8) for n in range(entries))
    return (
        b"II*\0" + struct.pack("<I", size) + bytes(size - 8) + struct.pack("<H", entries) + parts + bytes(4)
    )


def test_metadata_that_would_fill_the_memory() -> None:
    """Pillow would read hundreds of gigabytes, as it does of the metadata that it is asked for."""
    data = crowded(65_535, 8_000_000)
    with pytest.raises(InputError, match=r"^x: truncated or damaged TIFF"):
        decode_source(data, "x")
    assert orientation(b"Exif\0\0" + data) == 1
    for form in ("AVIF", "WEBP", "JPEG"):
        exif = Image.Exif()
        exif[0x010F] = "a" * (len(data) if form != "JPEG" else 60_000)
        whole = saved(picture().convert("RGB"), form, exif=exif.tobytes())
        at = whole.index(b"MM\0*")
        some = data if form != "JPEG" else crowded(3000, 20_000)
        whole = whole[:at] + some + whole[at + len(some) :]
        decode_source(whole, "x")
    whole = saved(picture(), "PNG")
    decode_source(whole[:33] + chunk(b"eXIf", data) + whole[33:], "x")


def test_directory_that_leads_to_itself() -> None:
    whole = bytearray(tiff_file(SMALL))
    at = struct.unpack("<I", whole[4:8])[0]
    end = at + 2 + 12 * struct.unpack("<H", whole[at : at + 2])[0]
    whole[end : end + 4] = struct.pack("<I", at)
    assert decode_source(bytes(whole), "x").size == (4, 4)
    assert Directory(bytes(whole)).integer(256) == 4


@pytest.mark.parametrize("count", [light.PARTS + 1, 2_000_000])
def test_millions_of_parts_of_a_gif(count: int) -> None:
    whole = saved(picture().convert("RGB"), "GIF")
    at = whole.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 24, 20))
    for block in (b"\x21\xfe" + b"\1x" * count + b"\0", b"\x21\xfe\0" * count):
        with pytest.raises(InputError, match=r"^x: truncated or damaged GIF \(too many parts\)"):
            decode_source(whole[:at] + block + whole[at:], "x")


@pytest.mark.parametrize("compression", [1, 2])
def test_bmp_of_runs(compression: int) -> None:
    """Which is decoded in Python: jumps over whole lines, and many short runs."""
    head = struct.pack("<IiiHHIIiiII", 40, 8192, 8192, 1, 8 // compression, compression, 0, 0, 0, 16, 0)
    for runs in (b"\0\2\xff\xff" * 300_000, b"\1\1" * 8_000_000, b"\0\0" * 8_000_000):
        data = b"BM" + struct.pack("<IHHI", 0, 0, 0, 54 + 64) + head + bytes(64) + runs
        try:
            assert decode_source(data, "x").size == (8192, 8192)
        except InputError as error:
            assert str(error).startswith("x: truncated or damaged BMP (")
