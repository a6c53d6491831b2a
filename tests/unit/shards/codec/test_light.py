"""Source images of every format: Pillow's pixels, upright, whatever else is in the file."""

from __future__ import annotations

import io
import struct
import time
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin, features

from diffbase.cli import InputError
from shards.codec import light, png
from shards.codec.encode import decode_source, prepare
from shards.codec.orientation import Picture, orientation
from shards.schema import IMAGE_SUFFIXES
from tests.support.fuzz.examples import picture, saved
from tests.support.image_files import chunk, libdeflate, png_file, tiff_file

FORMS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
TURNED = ("PNG", "JPEG", "WEBP", "TIFF", "AVIF")  # those that can tell how they stand


def rgba(found: Picture) -> NDArray[np.uint8]:
    if isinstance(found, Image.Image):
        return np.asarray(found.convert("RGBA"))
    return np.concatenate([found, np.full((*found.shape[:2], 4 - found.shape[2]), 255, np.uint8)], 2)


def noise(seed: int, size: tuple[int, int], channels: int = 4) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, channels), np.uint8))


def same_as_pillow(data: bytes) -> None:
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(rgba(decode_source(data, "x")), np.asarray(image.convert("RGBA")))


def test_suffixes_are_those_of_the_formats() -> None:
    assert {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES} == set(FORMS)
    assert light.FORMATS.keys() == set(FORMS)


@settings(max_examples=80, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    mode=st.sampled_from(["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"]),
    size=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    seed=st.integers(0, 99),
    fast=st.booleans(),
)
def test_pixels_are_pillows(form: str, mode: str, size: tuple[int, int], seed: int, fast: bool) -> None:
    image = noise(seed, size)
    image = image if mode == "RGBA" else image.convert("LA" if mode == "LA" else "RGB").convert(mode)
    try:
        data = saved(image, form)
    except (OSError, ValueError):  # a mode that the format has not
        return
    with libdeflate(fast):
        same_as_pillow(data)


@settings(max_examples=40, deadline=None)
@given(
    form=st.sampled_from(["GIF", "PNG", "WEBP", "AVIF", "TIFF"]),
    seed=st.integers(0, 99),
    clear=st.booleans(),
    comment=st.binary(max_size=600),
)
def test_first_picture_of_an_animation(form: str, seed: int, clear: bool, comment: bytes) -> None:
    first, *others = (noise(seed + n, (8, 9), 4 if clear else 3) for n in range(3))
    options: dict[str, Any] = {"comment": comment} if form == "GIF" else {}
    data = saved(first, form, save_all=True, append_images=others, **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    same_as_pillow(data)


@settings(max_examples=40, deadline=None)
@given(st.tuples(*[st.integers(1, 9)] * 2), st.tuples(*[st.integers(0, 5)] * 2), st.booleans())
def test_gif_whose_picture_is_not_its_canvas(
    canvas: tuple[int, int], corner: tuple[int, int], clear: bool
) -> None:
    """Smaller, beside it, or partly outside."""
    whole = saved(noise(0, (4, 5), 3), "GIF", **({"transparency": 3} if clear else {}))
    at = whole.index(b"\x2c" + struct.pack("<HHHH", 0, 0, 5, 4))
    moved = whole[:at] + b"\x2c" + struct.pack("<HHHH", *corner, 5, 4) + whole[at + 9 :]
    same_as_pillow(moved[:6] + struct.pack("<HH", *canvas) + moved[10:])


def test_gif_with_bytes_between_its_blocks() -> None:
    stream = io.BytesIO()
    first = noise(0, (9, 9), 3)
    first.save(stream, "WEBP", lossless=True)
    same_as_pillow(saved(Image.open(stream), "GIF", transparency=3))
    whole = saved(first, "GIF", comment=b"x", transparency=3)
    start = 13 + 3 * 2 ** ((whole[10] & 7) + 1)
    control, picture = whole.index(b"\x21\xf9", start), whole.index(b"\x2c\0\0\0\0\t", start)
    for at in (start, control, picture):
        same_as_pillow(whole[:at] + b"\0\1\0" + whole[at:])
    with pytest.raises(InputError, match="no picture"):
        decode_source(whole[:control] + bytes(9) + b";" + whole[control:], "x")


@pytest.mark.parametrize(
    "compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "group4"]
)
@pytest.mark.parametrize("big", [False, True])
def test_compressed_tiff(compression: str, big: bool) -> None:
    image = noise(0, (30, 40), 3)
    image = image.convert("1") if compression == "group4" else image
    same_as_pillow(saved(image, "TIFF", compression=compression, big_tiff=big))


# How a picture stands.


def exif_of(turned: int, endian: str = ">") -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a maker's name that does not fit into its entry"
    exif[0x0112] = turned
    return exif.tobytes()


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("form", TURNED)
@pytest.mark.parametrize("turned", [0, *range(1, 10)])
def test_upright(form: str, turned: int, fast: bool) -> None:
    with libdeflate(fast):
        same_as_pillow(saved(noise(0, (7, 9), 3), form, exif=exif_of(turned)))


@pytest.mark.parametrize("turned", range(1, 9))
def test_upright_where_other_tools_tell_it(turned: int) -> None:
    exif = exif_of(turned)
    xmp = f'<x:xmpmeta><rdf:Description tiff:Orientation="{turned}"/></x:xmpmeta>'.encode()
    digits = exif.hex()
    lines = "\n".join(digits[at : at + 72] for at in range(0, len(digits), 72))
    raw = f"\nexif\n{len(exif):8}\n{lines}\n".encode()
    samples = np.asarray(noise(0, (7, 9), 3)).astype(int)
    for text in (
        chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(raw)),
        chunk(b"eXIf", exif[6:]),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
    ):
        for place in ("before", "behind"):
            for fast in (False, True):
                with libdeflate(fast):
                    same_as_pillow(png_file(samples, 8, 2, filters=[0], **{place: text}))
    for form in ("JPEG", "WEBP"):
        same_as_pillow(saved(noise(0, (7, 9), 3), form, xmp=xmp))
        same_as_pillow(saved(noise(0, (7, 9), 3), form, xmp=xmp, exif=exif_of(3)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_orientation_of_anything(data: st.DataObject) -> None:
    whole = exif_of(data.draw(st.integers(0, 9)))
    place = data.draw(st.integers(0, len(whole)))
    mutated = whole[:place] + data.draw(st.binary(max_size=9)) + whole[place + data.draw(st.integers(0, 9)) :]
    assert orientation(mutated) in range(1, 9)
    assert orientation(data.draw(st.binary(max_size=60)), data.draw(st.binary(max_size=60))) in range(1, 9)


def test_exif_heads_without_end() -> None:
    heads = b"Exif\0\0" * (1 << 20)
    started = time.process_time()
    assert orientation(heads + exif_of(6)) == 6
    assert time.process_time() - started < 5  # cut off one by one they took a minute


def test_orientation_of_other_types_and_orders() -> None:
    for order, head in (("<", b"II*\0"), (">", b"MM\0*")):
        for kind, code in ((1, "B"), (3, "H"), (4, "I")):
            value = struct.pack(order + code, 6).ljust(4, b"\0")
            data = head + struct.pack(order + "IHHHI", 8, 1, 0x0112, kind, 1) + value
            assert orientation(b"Exif\0\0" + data) == orientation(data) == 6
            assert orientation(data[:-1]) == 1


# Metadata of any size, damaged or not.

MUCH = np.random.default_rng(0).bytes(3_000_000)


def jpeg_with(segments: bytes) -> bytes:
    whole = saved(picture().convert("RGB"), "JPEG")
    return whole[:2] + segments + whole[2:]


def segment(kind: int, content: bytes) -> bytes:
    return bytes([0xFF, kind]) + struct.pack(">H", len(content) + 2) + content


def webp_with(kind: bytes) -> bytes:
    whole = saved(picture().convert("RGB"), "WEBP", lossless=True, exif=exif_of(1))
    at = whole.index(b"EXIF")
    parts = whole[8:at] + kind + struct.pack("<I", len(MUCH)) + MUCH
    return b"RIFF" + struct.pack("<I", len(parts)) + parts


def gif_with(block: bytes, count: int) -> bytes:
    whole = saved(picture().convert("RGB"), "GIF")
    at = whole.index(b"\x2c", 13 + 3 * 2 ** ((whole[10] & 7) + 1))
    return whole[:at] + block[:2] + (bytes([len(block) - 2]) + block[2:]) * count + b"\0" + whole[at:]


def png_texts() -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("a", "b" * 3_000_000, zip=True)
    info.add_itxt("c", "d" * 3_000_000, zip=True)
    info.add_text("e", "f" * 3_000_000)
    return saved(picture(), "PNG", pnginfo=info, icc_profile=bytes(3_000_000), exif=b"Exif\0\0" + MUCH)


def avif_with(head: bytes) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "a" * 3_000_000
    whole = saved(picture().convert("RGB"), "AVIF", exif=exif.tobytes(), xmp=MUCH)
    assert whole.count(b"MM\0*") == 1
    return whole.replace(b"MM\0*", head)


FULL: dict[str, Callable[[], bytes]] = {
    "png": png_texts,
    "png of 16 bits": lambda: png_file(
        np.zeros((5, 5, 3), int), 16, 2, before=chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1 << 24)))
    ),
    "png, raw profile": lambda: png_file(
        np.zeros((5, 5, 3), int),
        8,
        2,
        before=chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n9\n" + b"zz" * 10**6)),
    ),
    "jpeg comments": lambda: jpeg_with(segment(0xFE, bytes(65533)) * 400),
    "jpeg exif": lambda: jpeg_with(segment(0xE1, b"Exif\0\0" + MUCH[:65527]) * 400),
    "jpeg profiles": lambda: jpeg_with(segment(0xE2, b"ICC_PROFILE\0" + MUCH[:65521]) * 400),
    "jpeg pictures": lambda: jpeg_with(segment(0xE2, b"MPF\0" + exif_of(1)[6:] + MUCH[:999]) * 400),
    "jpeg photoshop": lambda: jpeg_with(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" + MUCH[:60000]) * 400),
    "webp exif": lambda: webp_with(b"EXIF"),
    "webp xmp": lambda: webp_with(b"XMP "),
    "gif comment": lambda: gif_with(b"\x21\xfe" + bytes(255), 120_000),
    "gif application": lambda: gif_with(b"\x21\xff" + b"XMP DataXMP" + bytes(200), 50_000),
    "bmp": lambda: saved(picture().convert("RGB"), "BMP") + MUCH,
    "tiff": lambda: tiff_file(
        np.zeros((5, 5, 3), np.uint8),
        xmp=(700, "B", list(MUCH)),
        profile=(34675, "B", [0] * 3_000_000),
        exif=(34665, "I", [8]),
        dpi=(282, "H", [1, 2, 3]),
        other=(65000, "I", [2**32 - 1]),
    ),
    "avif": lambda: avif_with(b"MM\0*"),
    "avif, damaged": lambda: avif_with(b"MM\0?"),
}


@pytest.mark.parametrize("what", FULL)
@pytest.mark.parametrize("fast", [False, True])
def test_metadata_of_any_size(what: str, fast: bool, recwarn: pytest.WarningsRecorder) -> None:
    with libdeflate(fast):
        assert prepare(decode_source(FULL[what](), "x"), "x", None, 4).shape == (4, 4, 3)
    assert not recwarn.list


def test_only_what_makes_pixels_reaches_a_library() -> None:
    for what, made in FULL.items():
        if what.startswith(("jpeg", "gif")):
            read = light.jpeg if what.startswith("jpeg") else light.gif
            assert len(read(made()).data) < 3000, what
        if what.startswith("png"):
            assert len(png.lightened(made(), png.parts(made()))) < 3000, what


def test_no_part_of_an_avif_hides_another() -> None:
    """A name that looks like the beginning of a part, and ends where the part itself begins."""
    hidden = b"infe\2\0\0\0\x15infe\2Exif?\0\0Exif\0"
    assert light.avif(hidden).data.endswith(b"free\0")
    for plain in (b"infe\2\0\0\0\0\1\0\0mime\0", b"infe\3\0\0\0\0\0\0\1\0\0Exif\0"):
        assert light.avif(plain).data == plain[:-5] + b"free\0"
    for other in (b"infe\2\0\0\0\0\1\0\0av01Exif\0", b"Exif\0\0mime"):
        assert light.avif(other).data == other


def test_no_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "check", lambda name: False)
    with pytest.raises(InputError, match=r"^x: an AVIF image; Pillow here reads none"):
        decode_source(saved(picture().convert("RGB"), "AVIF"), "x")


@pytest.mark.parametrize("form", FORMS)
def test_cut_or_mutated(form: str) -> None:
    """Read, or told in one line."""
    whole = saved(picture().convert("RGB"), form)
    for cut in range(0, len(whole), max(len(whole) // 60, 1)):
        for data in (whole[:cut], whole[:cut] + b"\xff" + whole[cut + 1 :]):
            try:
                prepare(decode_source(data, "x"), "x", None, 4)
            except InputError as error:
                assert str(error).startswith("x: ")
