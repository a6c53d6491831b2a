"""From a source PNG to a packed one: the right pixels, or the reason why not."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffbase.cli import InputError
from shards.codec.encode import prepare_image
from shards.codec.png import size_of
from tests.support.tiny_set import EDGE, pixels_of, png, png_of, resized_in_floats


def test_pixels_are_those_of_the_plain_chain() -> None:
    """Composite, crop, antialiased resize, whatever is done to get there sooner."""
    pixels = np.random.default_rng(0).integers(0, 256, (60, 70, 4), np.uint8)
    for image in (
        Image.fromarray(pixels),
        Image.fromarray(pixels).resize((70, 60), box=(0, 0, 10, 10)),  # smooth, as artwork is
    ):
        ours = pixels_of(prepare_image(png(np.asarray(image)), "x", crop=48, size=8))
        white = Image.new("RGBA", image.size, "white")
        first = Image.alpha_composite(white, image).convert("RGB").crop((11, 6, 59, 54))
        assert np.abs(ours - resized_in_floats(np.asarray(first), 8)).max() <= 0.6  # half a level is rounding


def test_half_transparent_pixel() -> None:
    pixels = np.full((8, 8, 4), (200, 0, 100, 128), np.uint8)
    assert (
        np.abs(pixels_of(prepare_image(png(pixels), "x", crop=8, size=8))[0, 0] - [227, 127, 177.0]).max()
        <= 1
    )


def test_no_dark_fringe() -> None:
    """Transparent pixels are black in the files; none of that black may bleed into the edges."""
    pixels = np.zeros((32, 32, 4), np.uint8)
    pixels[:, 13:] = (255, 0, 0, 255)
    packed_pixels = pixels_of(prepare_image(png(pixels), "x", crop=32, size=8))
    assert packed_pixels[..., 0].min() >= 254  # from white to red, red stays full
    assert packed_pixels[0, 0].tolist() == [255, 255, 255]
    assert packed_pixels[0, -1].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "1"])
def test_other_png_modes(mode: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (9, 9), "white").convert(mode).save(stream, "PNG")
    assert (pixels_of(prepare_image(stream.getvalue(), "x", crop=8, size=4)) == 255).all()


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_png_is_told_or_packed(data: st.DataObject) -> None:
    whole = png_of("cs0")
    place = data.draw(st.integers(0, len(whole) - 1))
    noise = data.draw(st.binary(max_size=8))
    cut = data.draw(st.integers(0, 12))
    try:
        found = prepare_image(whole[:place] + noise + whole[place + cut :], "x.png", crop=8, size=4)
    except InputError as error:
        assert "x.png" in str(error)
        return
    assert pixels_of(found).shape == (4, 4, 3)


def test_reason_tells_no_memory_address() -> None:
    whole = png_of("cs0")
    junk = whole[:24] + bytes(len(whole) - 24)
    with pytest.raises(InputError, match=r"x\.png: truncated or damaged PNG") as caught:
        prepare_image(junk, "x.png", crop=8, size=4)
    assert "0x" not in str(caught.value)


def test_head_of_a_png() -> None:
    whole = png_of("cs0")
    assert size_of(whole) == (EDGE, EDGE)
    assert [size_of(whole[:length]) for length in range(24)] == [None] * 24
    assert size_of(whole.replace(b"IHDR", b"IDAT")) is None
    assert size_of(b"GIF89a\0\0" + whole[8:]) is None
