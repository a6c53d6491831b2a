"""Read face and hair colour back from small pictures of stand-in avatars, without a trained network.

The artwork keeps two places free on every avatar: the cheeks beside the nose show plain skin and the crown
plain hair (``shards.standin.artwork.geometry``). A picture is sampled there and the median sample is named
after the nearest colour of the palette. The rule holds for the stand-in's artwork only, not for Google's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from shards.schema import CARTOON_SET, UNKNOWN
from shards.standin.artwork import BALD_HAIR
from shards.standin.artwork.geometry import CANVAS, CENTER_X, CHEEK_PLACES, CROP, CROWN_PLACES, Point
from shards.standin.artwork.palette import FACE, HAIR, RGB

# One order of a few hundred labels still agrees by chance: the control is the mean over some.
SHUFFLES = 50

_RULES: dict[str, tuple[tuple[Point, ...], tuple[RGB, ...]]] = {
    "face_color": (CHEEK_PLACES, FACE),
    "hair_color": (CROWN_PLACES, HAIR),
}


def read_colors(images: NDArray[np.uint8], crop: int = CROP) -> dict[str, NDArray[np.int64]]:
    """Face and hair colour of every picture.

    ``images`` is uint8 [N, S, S, 3], RGB over white: the central ``crop`` x ``crop`` of the 500 x 500
    canvas, resized with antialiasing to S x S. Returns ``{"face_color": int64 [N], "hair_color": int64
    [N]}``, variants of the schema. The hair colour of a bald avatar (``BALD_HAIR``) means nothing. Raises
    ValueError for another shape or type.
    """
    if images.ndim != 4 or images.shape[1] != images.shape[2] or images.shape[3] != 3:
        raise ValueError(f"images have shape {images.shape}; expected [N, S, S, 3]")
    if images.dtype != np.uint8:
        raise ValueError(f"images are {images.dtype}; expected uint8")
    return {
        name: _nearest(_sample(images, places, crop), palette) for name, (places, palette) in _RULES.items()
    }


def _sample(images_NSSC: NDArray[np.uint8], places: Sequence[Point], crop: int) -> NDArray[np.float64]:
    """Bilinear samples at canvas places: float64 [N, places, 3]."""
    size = images_NSSC.shape[1]
    corner = (CANVAS - crop) / 2
    canvas_P2 = np.array(places) + np.array([CENTER_X, 0.0])
    # A pixel's value stands for its middle, which lies half a pixel in.
    at_P2 = np.clip((canvas_P2 - corner) * size / crop - 0.5, 0, size - 1)
    low_P2 = np.minimum(at_P2.astype(int), size - 2)
    (x, y), (u, v) = low_P2.T, (at_P2 - low_P2).T[:, None, :, None]
    upper = images_NSSC[:, y, x] * (1 - u) + images_NSSC[:, y, x + 1] * u
    lower = images_NSSC[:, y + 1, x] * (1 - u) + images_NSSC[:, y + 1, x + 1] * u
    sampled: NDArray[np.float64] = upper * (1 - v) + lower * v
    return sampled


def _nearest(samples_NPC: NDArray[np.float64], palette: Sequence[RGB]) -> NDArray[np.int64]:
    """Index of the palette's colour nearest to the median sample: int64 [N]."""
    color_NC = np.median(samples_NPC, axis=1)
    distance_NK = np.linalg.norm(color_NC[:, None] - np.array(palette, dtype=float), axis=-1)
    nearest: NDArray[np.int64] = distance_NK.argmin(axis=1).astype(np.int64)
    return nearest


def agreement(
    images: NDArray[np.uint8],
    labels: Mapping[str, NDArray[np.int64]] | NDArray[np.int64],
    crop: int = CROP,
    seed: int = 0,
) -> dict[str, float]:
    """How often the colours read from ``images`` are the ones asked for.

    ``labels`` are the asked variants: arrays [N] by name (``face_color``, ``hair_color`` and ``hair``), or
    one array [N, 18] in the schema's order. Bald avatars do not count for ``hair_color``, nor does what is
    unknown. The ``_shuffled`` entries compare with the labels in random orders (mean of 50): a rule that
    reads nothing scores the same there, and a working one falls to chance (1 in 11, 1 in 10). ``_count``
    says how many counted; an accuracy over none is nan.
    """
    if not isinstance(labels, Mapping):
        labels = {attribute.name: labels[:, column] for column, attribute in enumerate(CARTOON_SET)}
    read = read_colors(images, crop)
    has_hair = ~np.isin(labels["hair"], [*BALD_HAIR, UNKNOWN])
    result: dict[str, float] = {}
    for name, kept in (("face_color", np.ones_like(has_hair)), ("hair_color", has_hair)):
        kept = kept & (np.asarray(labels[name]) != UNKNOWN)
        asked, seen = np.asarray(labels[name])[kept], read[name][kept]
        random = np.random.default_rng(seed)
        shuffles = [_share(random.permutation(asked) == seen) for _ in range(SHUFFLES)]
        result[name] = _share(asked == seen)
        result[f"{name}_shuffled"] = float(np.mean(shuffles))
        result[f"{name}_count"] = float(len(asked))
    return result


def _share(hits: NDArray[np.bool_]) -> float:
    return float(hits.mean()) if len(hits) else float("nan")
