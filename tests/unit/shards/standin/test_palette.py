"""The palette rule reads face and hair colour back from small renders, and nothing from shuffled ones."""

from __future__ import annotations

import itertools
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from shards.schema import CARTOON_SET, UNKNOWN
from shards.standin.artwork import BALD_HAIR, avatar
from shards.standin.artwork.geometry import CANVAS, CHEEK_PLACES, CROWN_PLACES
from shards.standin.artwork.palette import FACE, HAIR
from shards.standin.colors import agreement, read_colors
from shards.standin.files import labels_of

COUNT = 200


@pytest.fixture(scope="module")
def asked() -> list[dict[str, int]]:
    return [labels_of(20_000, index) for index in range(COUNT)]


@pytest.fixture(scope="module")
def pictures(asked: list[dict[str, int]]) -> list[Image.Image]:
    """Over white, centre crop 360."""
    result = []
    for labels in asked:
        picture = Image.fromarray(avatar.render(labels))
        white = Image.new("RGBA", picture.size, "white")
        white.alpha_composite(picture)
        result.append(white.convert("RGB").crop((70, 70, 430, 430)))
    return result


def resized(pictures: list[Image.Image], size: int, how: Image.Resampling) -> np.ndarray:
    return np.stack([np.asarray(picture.resize((size, size), how)) for picture in pictures])


def columns(asked: list[dict[str, int]]) -> dict[str, np.ndarray]:
    return {a.name: np.array([labels[a.name] for labels in asked]) for a in CARTOON_SET}


@pytest.mark.parametrize(
    "how", [Image.Resampling.BILINEAR, Image.Resampling.LANCZOS], ids=["bilinear", "lanczos"]
)
@pytest.mark.parametrize("size", [32, 48, 64])
def test_reads_held_out_renders(
    asked: list[dict[str, int]], pictures: list[Image.Image], size: int, how: Image.Resampling
) -> None:
    images = resized(pictures, size, how)
    result = agreement(images, columns(asked))
    assert result["face_color"] >= 0.98
    assert result["hair_color"] >= 0.98
    # 1 in 11 and 1 in 10, give or take three standard deviations.
    assert result["face_color_shuffled"] == pytest.approx(1 / 11, abs=0.03)
    assert result["hair_color_shuffled"] == pytest.approx(1 / 10, abs=0.03)
    assert result["face_color_count"] == COUNT
    bald = sum(labels["hair"] in BALD_HAIR for labels in asked)
    assert 0 < bald == COUNT - result["hair_color_count"]


def test_survives_noise(asked: list[dict[str, int]], pictures: list[Image.Image]) -> None:
    images = resized(pictures, 64, Image.Resampling.LANCZOS)
    noise = np.random.default_rng(0).normal(0, 10, images.shape)
    result = agreement(np.clip(images + noise, 0, 255).astype(np.uint8), columns(asked))
    assert result["face_color"] >= 0.98
    assert result["hair_color"] >= 0.98


def test_labels_as_one_array_or_by_name(asked: list[dict[str, int]], pictures: list[Image.Image]) -> None:
    images = resized(pictures[:20], 64, Image.Resampling.BILINEAR)
    by_name = columns(asked[:20])
    matrix = np.stack([by_name[a.name] for a in CARTOON_SET], axis=1)
    assert agreement(images, matrix) == agreement(images, by_name)


def test_unknown_labels_do_not_count(asked: list[dict[str, int]], pictures: list[Image.Image]) -> None:
    images, labels = resized(pictures[:40], 64, Image.Resampling.BILINEAR), columns(asked[:40])
    known = agreement(images[10:], {name: values[10:] for name, values in labels.items()})
    for name in ("face_color", "hair_color"):
        labels[name] = np.where(np.arange(40) < 10, UNKNOWN, labels[name])
    assert agreement(images, labels) == known
    labels["hair"] = np.full(40, UNKNOWN)  # bald, perhaps
    assert agreement(images, labels)["hair_color_count"] == 0


def test_every_hair_style_shows_its_color_on_the_crown() -> None:
    color = 4
    base = {a.name: 0 for a in CARTOON_SET} | {"hair_color": color, "face_color": 7, "glasses": 11}
    for hair in sorted(set(range(111)) - BALD_HAIR):
        pixels = avatar.render(base | {"hair": hair})
        for x, y in CROWN_PLACES:
            assert tuple(pixels[y_of(y), x_of(x), :3]) == HAIR[color], f"hair {hair} at {x}, {y}"


def test_cheeks_show_skin_under_every_beard_and_pair_of_glasses() -> None:
    base = {a.name: 0 for a in CARTOON_SET} | {"face_color": 4, "hair_color": 0}
    for face_shape, beard in itertools.product(range(7), range(15)):
        glasses = (beard + face_shape) % 12
        pixels = avatar.render(base | {"face_shape": face_shape, "facial_hair": beard, "glasses": glasses})
        for x, y in CHEEK_PLACES:
            assert tuple(pixels[y_of(y), x_of(x), :3]) == FACE[4], f"beard {beard}, glasses {glasses}"


def x_of(x: float) -> int:
    return round(CANVAS / 2 + x)


def y_of(y: float) -> int:
    return round(y)


@pytest.mark.parametrize(("palette", "apart"), [(FACE, 28), (HAIR, 40)], ids=["face", "hair"])
def test_colors_are_far_apart(palette: tuple[tuple[int, int, int], ...], apart: float) -> None:
    distances = [np.linalg.norm(np.subtract(a, b)) for a, b in itertools.combinations(palette, 2)]
    assert min(distances) >= apart
    # As far from the white behind the avatar.
    assert min(np.linalg.norm(np.subtract(a, (255, 255, 255))) for a in palette) >= apart


def test_only_bald_avatars_leave_hair_color_uncounted() -> None:
    labels = {name: np.zeros(2, np.int64) for name in ("face_color", "hair_color")}
    labels["hair"] = np.array([min(BALD_HAIR), max(BALD_HAIR)])
    result = agreement(np.zeros((2, 32, 32, 3), np.uint8), labels)
    assert result["hair_color_count"] == 0
    assert np.isnan(result["hair_color"])


@pytest.mark.parametrize(
    "images", [np.zeros((2, 3, 32, 32), np.uint8), np.zeros((2, 32, 32, 3)), np.zeros((32, 32, 3), np.uint8)]
)
def test_other_shapes_and_types_are_refused(images: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_colors(images)


def test_needs_neither_skia_nor_torch() -> None:
    code = "import sys, shards.standin.colors as _; sys.exit(bool({'skia', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
