"""Where things are on the 500 x 500 canvas. Plain numbers; imports no skia.

The y axis points down and is the canvas's own. The artwork's x axis starts in the middle of the face, so
left and right are -x and +x: canvas x = ``CENTER_X`` + x. Proportions and placement are those of the
published avatars: eyes at the middle of the canvas's height and a half, ears as low as the nose.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

Point = tuple[float, float]

CANVAS = 500
CENTER_X = 250.0
# The part of the canvas that is trained on: rows and columns 70 to 430.
CROP = 360

SKULL_TOP = 124.0
TEMPLE = 92.0
TEMPLE_Y = 228.0
EYE_X, EYE_Y = 44.0, 262.0
NOSE_Y = 312.0
MOUTH_Y = 338.0

# Where colours are read back (artwork x, canvas y). The cheeks beside the nose lie below every pair of
# glasses (which end at y = 289) and above every beard (which begins at y = 318 there); the crown lies on
# hair in every style outside BALD_HAIR and clear of its highlights, which begin at x = +22.
CHEEK_PLACES: tuple[Point, ...] = tuple((x, y) for x in (-52, -43, -34, 34, 43, 52) for y in (301, 305))
CROWN_PLACES: tuple[Point, ...] = tuple((x, y) for x in (-18, -9, 0, 7) for y in (137, 142, 147))


@dataclass(frozen=True)
class FaceShape:
    """The corners that round off into a face: half-widths at the cheek (y = 300), the jaw and the chin."""

    cheek: float
    jaw: float
    jaw_y: float
    chin: float


FACE_SHAPES: tuple[FaceShape, ...] = (
    FaceShape(cheek=84, jaw=68, jaw_y=358, chin=24),  # oval
    FaceShape(cheek=82, jaw=51, jaw_y=353, chin=17),  # pointed
    FaceShape(cheek=86, jaw=85, jaw_y=362, chin=34),  # square
    FaceShape(cheek=95, jaw=84, jaw_y=352, chin=37),  # round
    FaceShape(cheek=76, jaw=65, jaw_y=364, chin=27),  # narrow
    FaceShape(cheek=94, jaw=58, jaw_y=342, chin=15),  # heart
    FaceShape(cheek=79, jaw=95, jaw_y=357, chin=36),  # pear
)

# chin_length moves the tip of the chin and, half as far, the corner of the jaw.
CHIN_Y: tuple[float, ...] = (379.0, 391.0, 403.0)


def jaw_points(face_shape: int, chin_length: int, grow: float = 0.0) -> list[Point]:
    """The face's edge from the right temple round the chin to the left one.

    A quadratic B-spline over the shape's corners: as convex as the corners are. ``grow`` pushes the edge
    outwards, not at all at the temples and fully at the chin: that is how the face's line swells, and how
    a beard stands off the chin.
    """
    shape, tip = FACE_SHAPES[face_shape], CHIN_Y[chin_length]
    jaw_y = shape.jaw_y + (tip - CHIN_Y[1]) / 2
    cheek = (shape.cheek + 0.5 * grow, 300.0)
    jaw = (shape.jaw + 0.9 * grow, jaw_y + 0.5 * grow)
    chin = (shape.chin + 0.4 * grow, tip + grow)
    right: list[Point] = [(TEMPLE, TEMPLE_Y)]
    middle = _between((TEMPLE, TEMPLE_Y), cheek, 0.5)
    for corner, end in (
        (cheek, _between(cheek, jaw, 0.5)),
        (jaw, _between(jaw, chin, 0.5)),
        (chin, (0.0, tip + grow)),
    ):
        right += [
            _between(_between(middle, corner, t), _between(corner, end, t), t) for t in (0.0, 0.25, 0.5, 0.75)
        ]
        middle = end
    return [*right, middle, *mirrored(right)]


def _between(a: Point, b: Point, t: float) -> Point:
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t)


def mirrored(points: list[Point]) -> list[Point]:
    """The same points on the other side of the face, in reversed order."""
    return [(-x, y) for x, y in reversed(points)]


def dome(width: float, top: float, bottom: float = 250.0) -> list[Point]:
    """A smooth outer edge of hair, from the lower left over the crown to the lower right."""
    height = TEMPLE_Y - top
    left = [
        (-width + 1, bottom),
        (-width, 208.0),
        (-0.94 * width, top + 0.5 * height),
        (-0.76 * width, top + 0.23 * height),
        (-0.42 * width, top + 0.055 * height),
    ]
    return [*left, (0.0, top), *mirrored(left)]


def catmull_rom(points: list[Point]) -> list[tuple[Point, Point, Point]]:
    """Cubic segments (control, control, end) of a smooth curve through points, from the first on."""
    padded = [points[0], *points, points[-1]]
    segments = []
    for before, start, end, after in zip(padded, padded[1:], padded[2:], padded[3:], strict=False):
        c1 = (start[0] + (end[0] - before[0]) / 6, start[1] + (end[1] - before[1]) / 6)
        c2 = (end[0] - (after[0] - start[0]) / 6, end[1] - (after[1] - start[1]) / 6)
        segments.append((c1, c2, end))
    return segments


def even_points(points: list[Point], count: int) -> list[Point]:
    """``count`` + 1 points, evenly spaced along the smooth curve through ``points``."""
    dense = [points[0]]
    for c1, c2, end in catmull_rom(points):
        start = dense[-1]
        for step in range(1, 25):
            t = step / 24
            a, b, c, d = (1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t**3
            dense.append(
                (
                    a * start[0] + b * c1[0] + c * c2[0] + d * end[0],
                    a * start[1] + b * c1[1] + c * c2[1] + d * end[1],
                )
            )
    lengths = [0.0]
    for p, q in itertools.pairwise(dense):
        lengths.append(lengths[-1] + math.dist(p, q))
    result, at = [], 0
    for index in range(count + 1):
        wanted = lengths[-1] * index / count
        while at < len(lengths) - 2 and lengths[at + 1] < wanted:
            at += 1
        span = lengths[at + 1] - lengths[at]
        t = (wanted - lengths[at]) / span if span else 0.0
        (x0, y0), (x1, y1) = dense[at], dense[at + 1]
        result.append((x0 + (x1 - x0) * t, y0 + (y1 - y0) * t))
    return result
