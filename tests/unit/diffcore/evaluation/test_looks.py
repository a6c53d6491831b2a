"""Checkerboards and backgrounds: what a person sees, measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from diffcore.evaluation.quality import looks
from diffcore.evaluation.quality.checkerboard import LEAST, checkerboard

SIZES = st.sampled_from([LEAST, 21, 32, 64])
SEEDS = st.integers(0, 2**32)
SHIFTS = st.tuples(st.integers(-1, 1), st.integers(-1, 1))


def smooth(size: int, seed: int, count: int = 2) -> NDArray[np.float64]:
    """Soft blobs as an under-trained network draws them, from 0 to 255: [N, S, S, 3]."""
    noise = np.random.default_rng(seed).normal(size=(count, size, size, 3))
    blobs = gaussian_filter(noise, (0, size / 12, size / 12, 0), mode="nearest")
    blobs -= blobs.min((1, 2), keepdims=True)
    return 10 + 235 * blobs / blobs.max((1, 2), keepdims=True)


def edges(size: int, seed: int, count: int = 2) -> NDArray[np.float64]:
    """Sharp shapes on white, as real avatars have: discs and bars."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    images = np.full((count, size, size, 3), 255.0)
    for image in images:
        for _ in range(6):
            (cy, cx), r = random.uniform(0.2, 0.8, 2), random.uniform(0.1, 0.3)
            inside = (y / size - cy) ** 2 + (x / size - cx) ** 2 < r**2
            image[inside] = random.uniform(0, 255, 3)
    return images


def shuffled(size: int, seed: int) -> NDArray[np.float64]:
    """What PixelShuffle leaves whose four sub-pixels have biases of their own: [S, S, 3], mean 0."""
    bias = np.random.default_rng(seed).choice([-1.0, 1.0], (2, 2, 3))
    bias[0, 0], bias[1, 1] = 1, -1  # not by chance four alike
    return np.tile(bias - bias.mean((0, 1)), (size // 2 + 1, size // 2 + 1, 1))[:size, :size]


def as_pixels(images: NDArray[np.float64]) -> NDArray[np.uint8]:
    return np.clip(np.round(images), 0, 255).astype(np.uint8)


@given(SIZES, SEEDS, SHIFTS, st.sampled_from([3, 8, 20]))
def test_a_pattern_of_sub_pixels_is_a_checkerboard_wherever_it_begins(
    size: int, seed: int, shift: tuple[int, int], amplitude: float
) -> None:
    images = smooth(size, seed)
    with_it = images + amplitude * np.roll(shuffled(size, seed), shift, (0, 1))
    assert checkerboard(as_pixels(with_it)).min() > 0.7
    assert checkerboard(as_pixels(images)).max() < 0.55


@given(SIZES, SEEDS, SHIFTS)
def test_a_shift_by_a_pixel_changes_little(size: int, seed: int, shift: tuple[int, int]) -> None:
    images = smooth(size, seed) + 6 * shuffled(size, seed)
    once = as_pixels(images[:, 1:-1, 1:-1])
    again = as_pixels(images[:, 1 + shift[0] : size - 1 + shift[0], 1 + shift[1] : size - 1 + shift[1]])
    if size - 2 >= LEAST:
        assert checkerboard(again) == pytest.approx(checkerboard(once), abs=0.05)


@given(SEEDS, st.floats(0.2, 1))
def test_contrast_does_not_matter(seed: int, contrast: float) -> None:
    images = smooth(64, seed) + 15 * shuffled(64, seed)
    faded = checkerboard(as_pixels(128 + contrast * (images - 128)))
    assert faded == pytest.approx(checkerboard(as_pixels(images)), abs=0.05)


def test_noise_edges_and_even_areas_are_no_checkerboard() -> None:
    random = np.random.default_rng(0)
    noise = checkerboard(as_pixels(128 + 20 * random.normal(size=(100, 64, 64, 3))))
    assert noise.mean() == pytest.approx(0.5, abs=0.02)  # as much in the bands as beside them
    assert np.median(checkerboard(as_pixels(edges(64, 1, 100)))) < 0.55
    assert checkerboard(np.full((3, 64, 64, 3), 200, np.uint8)).tolist() == [0, 0, 0]
    assert checkerboard(np.empty((0, 64, 64, 3), np.uint8)).shape == (0,)
    with pytest.raises(ValueError, match="too small"):
        checkerboard(np.zeros((1, LEAST - 1, LEAST - 1, 3), np.uint8))


# --- the background -----------------------------------------------------------------------------------------


def white(size: int = 64) -> tuple[looks.Background, NDArray[np.uint8]]:
    """Real images with noise inside a white frame, and their background."""
    real = np.full((40, size, size, 3), 255, np.uint8)
    inner = slice(size // 4, 3 * size // 4)
    shape = real[:, inner, inner].shape
    real[:, inner, inner] = np.random.default_rng(0).integers(0, 256, shape)
    return looks.Background.of([real]), real


def test_real_images_are_clean_and_what_lies_inside_does_not_count() -> None:
    background, real = white()
    assert (background.blemish(real) <= 0.5).all() and (background.clean(real) == 1).all()


@given(st.integers(0, 255), st.integers(1, 5))
def test_a_blemish_is_contrast_times_area(darker: int, edge: int) -> None:
    background, real = white()
    spotted = real[:1].copy()
    spotted[0, 3 : 3 + edge, 4 : 4 + edge] = 255 - darker
    expected = darker * min(edge, 3) ** 2 / 9
    assert background.blemish(spotted)[0] == pytest.approx(expected, abs=0.01)


def test_what_nobody_sees_is_clean_and_a_smudge_is_not() -> None:
    background, real = white()
    faint, speck, smudge, tinted = (real[:1].copy() for _ in range(4))
    faint[0, :8] = 249
    speck[0, 5, 5] = 255 - 70  # one pixel, nine times as faint over a patch
    smudge[0, 4:7, 4:7] = 255 - 12  # within the tolerance of each pixel, but as an area it shows
    tinted[0, :8, :, 2] = 240  # one channel alone
    seen = [float(background.blemish(image)[0]) > looks.SEEN for image in (faint, speck, smudge, tinted)]
    assert seen == [False, False, True, True]
    assert background.clean(smudge)[0] == 1


@pytest.mark.parametrize(("size", "edge"), [(8, 3), (32, 3), (64, 3), (128, 7), (256, 13)])
def test_a_patch_grows_with_the_images(size: int, edge: int) -> None:
    background, real = white(size)
    spotted = real[:1].copy()
    spotted[0, 0, 0] = 0
    assert background.blemish(spotted)[0] == pytest.approx(255 / edge**2, abs=0.01)
