"""The resize and the white ground: as exact as 8 bits allow, and the same whatever adds up the products."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.codec import resample
from shards.codec.resample import ONE, _bands, over_white, resize
from tests.support.tiny_set import resized_in_floats


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noise(edge: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(edge).integers(0, 256, (edge, edge, channels), np.uint8)


@settings(max_examples=60, deadline=None)
@given(edge=st.integers(1, 150), size=st.integers(1, 80), channels=st.sampled_from((3, 4)))
def test_resize_is_the_exact_one_rounded(edge: int, size: int, channels: int) -> None:
    pixels = noise(edge, channels)
    ours = resize(pixels, size)
    assert (ours.shape, ours.dtype) == ((size, size, 3), np.uint8)
    assert np.abs(ours - resized_in_floats(pixels, size)).max() < 0.53


@settings(max_examples=60, deadline=None)
@given(edge=st.integers(1, 150), size=st.integers(1, 80), piece=st.sampled_from((resample.PIECE, 500)))
def test_small_and_large_images_have_the_same_pixels(edge: int, size: int, piece: int) -> None:
    pixels = noise(edge)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resample, "SMALL", 1 << 40)
        at_once = resize(pixels, size)
        patch.setattr(resample, "SMALL", 0)
        patch.setattr(resample, "PIECE", piece)
        assert np.array_equal(resize(pixels, size), at_once)


@pytest.mark.parametrize(("edge", "size"), [(360, 64), (500, 64), (32, 64), (2000, 16)])
def test_resize_is_closer_to_the_exact_one_than_pillow(edge: int, size: int) -> None:
    pixels = noise(edge)
    exact = resized_in_floats(pixels, size)
    by_pillow = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    ours, pillows = (np.sqrt(np.mean((found - exact) ** 2)) for found in (resize(pixels, size), by_pillow))
    assert ours <= pillows
    assert ours < 0.3  # rounding alone: 12 ** -0.5


@pytest.mark.parametrize(("edge", "size"), [(360, 64), (7, 20), (3000, 8), (4096, 4096)])
def test_sums_are_exact_in_any_order(edge: int, size: int) -> None:
    """What makes the pixels independent of the machine: no sum leaves the whole numbers of a float32."""
    index, bands = _bands(edge, size)
    weights = bands.reshape(-1, bands.shape[2])
    assert (weights == np.rint(weights)).all()
    assert (weights[:size].sum(1) == ONE).all() and not weights[size:].any()
    assert 255 * np.abs(weights).sum(1).max() < 2**24
    assert 0 <= index.min() <= index.max() < edge


def test_resize_is_the_one_in_whole_numbers() -> None:
    pixels, size = noise(90), 16
    dense = np.zeros((size, 90), np.int64)
    for band, (index, weights) in enumerate(zip(*_bands(90, size), strict=True)):
        dense[band * len(weights) : (band + 1) * len(weights), index] = weights
    whole = np.einsum("yi,ijc,xj->yxc", dense, pixels.astype(np.int64), dense)
    assert np.array_equal(resize(pixels, size), ((whole + ONE**2 // 2) // ONE**2).clip(0, 255))


def test_same_size_changes_nothing_and_a_plain_area_keeps_its_colour() -> None:
    assert np.array_equal(resize(noise(33), 33), noise(33))
    assert (resize(np.full((361, 361, 3), 255, np.uint8), 64) == 255).all()


def test_resize_of_a_cut_out_view() -> None:
    whole = noise(80, 4)
    part = whole[5:45, 30:70]
    assert np.array_equal(resize(part, 9), resize(part.copy(), 9))
    assert np.array_equal(resize(part.transpose(1, 0, 2), 9), resize(part.transpose(1, 0, 2).copy(), 9))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_white_ground_is_pillows(share: float, rng: np.random.Generator) -> None:
    """Every colour over every alpha, ``share`` of them transparent or opaque."""
    values = np.arange(256, dtype=np.uint8)
    pixels = np.empty((256, 256, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = values[:, None], values
    pixels[..., 1:3] = rng.integers(0, 256, (256, 256, 2), np.uint8)
    pixels[rng.random((256, 256)) < share, 3] = rng.choice((0, 255))
    before, image = pixels.copy(), Image.fromarray(pixels)
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    assert np.array_equal(over_white(pixels)[..., :3], np.asarray(white))
    assert np.array_equal(pixels, before)
