"""PNG by hand: the files are any reader's, and other readers' files are left to them."""

from __future__ import annotations

import io
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from shards.codec import inflate as fast_zlib
from shards.codec import png
from tests.support.image_files import libdeflate
from tests.support.tiny_set import pixels_of
from tests.support.tiny_set import png as by_pillow


def light(data: bytes) -> NDArray[np.uint8] | bytes:
    return png.lightened(data, png.parts(data))


SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([3, 4]))


@pytest.fixture(params=["fastest", "zlib"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "zlib":
        monkeypatch.setattr(png, "inflater", lambda: fast_zlib.by_zlib)
    return request.param


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_there_and_back(data: st.DataObject) -> None:
    shape = data.draw(SHAPES)
    few = data.draw(st.sampled_from([2, 256]), "colours")
    pixels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, few, shape, np.uint8)
    packed, out = png.encode(pixels), np.empty_like(pixels)
    assert png.size_of(packed) == shape[1::-1]
    np.testing.assert_array_equal(pixels_of(packed), pixels)
    assert png.decode(packed, out)
    np.testing.assert_array_equal(out, pixels)


def test_drawings_and_gradients_have_their_filters() -> None:
    gradient = np.add.outer(np.arange(0, 192, 3), np.arange(64))[..., None].repeat(3, 2).astype(np.uint8)
    drawing = np.random.default_rng(0).integers(0, 2, (64, 64, 3), np.uint8) * 200
    for pixels, kind in ((gradient, png.UP), (drawing, png.NONE)):
        stream = png.encode(pixels)[41:-16]
        assert set(zlib.decompress(stream)[:: 1 + 64 * 3]) == {kind}


@pytest.mark.parametrize("kind", [png.NONE, png.SUB, png.UP])
def test_one_filter(way: str, kind: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 4), np.uint8)
    lines = pixels.reshape(5, -1).copy()
    if kind == png.SUB:
        lines[:, 4:] -= pixels.reshape(5, -1)[:, :-4]
    if kind == png.UP:
        lines[1:] -= pixels.reshape(5, -1)[:-1]
    stream = zlib.compress(np.insert(lines, 0, kind, 1).tobytes())
    head, end = png._head(5, 7, 4)[0], png._chunk(b"IEND", b"")
    packed = head + png._chunk(b"IDAT", stream) + end
    out = np.empty_like(pixels)
    assert png.decode(packed, out)
    np.testing.assert_array_equal(out, pixels)
    np.testing.assert_array_equal(pixels_of(packed), pixels)
    parts = [png._chunk(b"IDAT", stream[place : place + 9]) for place in range(0, len(stream), 9)]
    for others in (packed, head + png._chunk(b"gAMA", bytes(4)) + b"".join(parts) + end):
        with libdeflate(True):
            np.testing.assert_array_equal(light(others), pixels)

    for cut in (1, 5, len(stream) - 1):
        with pytest.raises(ValueError):
            png.decode(head + png._chunk(b"IDAT", stream[:-cut]) + end, out)
    for other in (zlib.compress(bytes(10)), zlib.compress(bytes(1 << 20)), b""):  # too short, a bomb, nothing
        with pytest.raises(ValueError):
            png.decode(head + png._chunk(b"IDAT", other) + end, out)


def test_other_files_are_left_to_others() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    out = np.full_like(pixels, 7)
    interlaced = bytearray(png.encode(pixels))
    interlaced[28] = 1
    two_chunks = png.encode(pixels)[:-12] + png._chunk(b"tEXt", b"a\0b") + png._chunk(b"IEND", b"")
    grey, webp = io.BytesIO(), io.BytesIO()
    Image.fromarray(pixels[..., 0]).save(grey, "PNG")
    Image.fromarray(pixels).save(webp, "WEBP")
    smooth = by_pillow(np.add.outer(np.arange(16), np.arange(0, 48)).astype(np.uint8).reshape(16, 16, 3))
    others = [bytes(interlaced), two_chunks, grey.getvalue(), webp.getvalue(), smooth, b"", pixels.tobytes()]
    for data in (*others, png.encode(pixels[1:]), png.encode(pixels)[:-1]):
        assert not png.decode(data, out)
    assert (out == 7).all()


def test_mixed_filters_are_stored() -> None:
    rng = np.random.default_rng(0)
    for shape in ((16, 16, 3), (200, 300, 4)):
        smooth = np.add.outer(np.arange(shape[0]), np.arange(shape[1]))[..., None] + rng.integers(0, 5, shape)
        whole = by_pillow(smooth.astype(np.uint8))
        with libdeflate(True):
            found = light(whole)
        assert isinstance(found, bytes) and len(found) > smooth.size
        np.testing.assert_array_equal(pixels_of(found), smooth.astype(np.uint8))


@pytest.mark.parametrize("fast", [True, False])
def test_what_comes_back_as_it_is(fast: bool) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    whole = png.encode(pixels)
    grey = by_pillow(pixels[..., 0])
    see_through = whole[:33] + png._chunk(b"tRNS", bytes(6)) + whole[33:]
    empty = png._head(0, 4, 3)[0] + png._chunk(b"IDAT", zlib.compress(b"")) + png._chunk(b"IEND", b"")
    with libdeflate(fast):
        for data in (grey, see_through, empty, png.SIGNATURE + png._chunk(b"IEND", b"")):
            assert light(data) is data
            noted = data[:-12] + png._chunk(b"tEXt", b"a\0b") + data[-12:]
            assert light(noted) == data  # but for what makes no pixels
        for data in (whole[:-1], b"", b"GIF89a", whole[:40] + b"x" + whole[41:], whole[:33] + whole[8:]):
            with pytest.raises(ValueError, match=r"too short|checksum|two heads"):
                light(data)
        assert (light(whole) is whole) is not fast


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_damage_is_left_to_others(data: st.DataObject) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    whole = png.encode(pixels)
    place = data.draw(st.integers(0, len(whole) - 1))
    mutated = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + data.draw(st.integers(0, 6)) :]
    with libdeflate(True), suppress(ValueError):
        found = light(mutated)
        assert found is mutated or (found == pixels).all()


def test_inflate_is_bounded(way: str) -> None:
    data = zlib.compress(bytes(1000))
    assert bytes(png.inflater()(data, 1000)) == bytes(1000)
    for length in (999, 1001, 1):
        with pytest.raises(ValueError):
            png.inflater()(data, length)
