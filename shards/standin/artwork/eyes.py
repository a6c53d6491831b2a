"""Eyes and brows.

- ``eye_angle``: how sharply the lids meet in the corners: round, almond or narrow eyes.
- ``eye_slant``: the whole eye turned: outer corners up, level or down.
- ``eye_lid``: open, or a heavy lid over the top of the iris.
- ``eye_lashes``: none, or two darts at each outer corner.
- ``eye_color``: the iris.
- ``eyebrow_shape``: the brow's arc and taper (``BROWS``); ``eyebrow_thickness``: its height;
  ``eyebrow_width``: its length; ``eyebrow_weight``: soft (mixed with the skin) or solid ink;
  ``eye_eyebrow_distance``: how far it floats over the eye.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import skia

from shards.standin.artwork.brush import Outline, both_sides, ellipse, fill, line
from shards.standin.artwork.geometry import EYE_X, EYE_Y, Point
from shards.standin.artwork.palette import EYES, INK, RGB, WHITE, brow_of, mix

EYE_WIDTH = 22.5
OPENING = (20.5, 17.0, 12.5)  # half-height of the eye, by eye_angle
SLANT_DEGREES = (-14.0, 0.0, 14.0)
BROW_GAP = (27.0, 34.0, 41.0)
BROW_THICKNESS = (0.6, 1.0, 1.45, 2.0)
BROW_LENGTH = (0.8, 1.0, 1.2)
SOFT_BROW = 0.5


@dataclass(frozen=True)
class Brow:
    """Heights of the brow's middle line (px, up is positive) and thickness at inner end, arch, outer end."""

    heights: tuple[float, float, float]
    thickness: tuple[float, float, float]
    arch_at: float = 0.55
    square: bool = False


BROWS: tuple[Brow, ...] = (
    Brow((0, 7, -1), (7, 7, 2)),  # classic arc
    Brow((0, 1, 0), (6, 7, 5), square=True),  # straight bar
    Brow((-4, 6, 6), (7, 7, 2)),  # rising
    Brow((6, 5, -6), (7, 7, 2)),  # falling
    Brow((-2, 11, -2), (5, 7, 2), arch_at=0.5),  # round arch
    Brow((-3, 9, -4), (8, 8, 2), arch_at=0.74),  # late peak
    Brow((0, 8, -5), (8, 8, 2), arch_at=0.32),  # early peak
    Brow((-6, 3, 9), (9, 7, 2)),  # stern
    Brow((0, 4, 0), (3, 9, 3)),  # leaf
    Brow((-1, 5, 0), (10, 7, 3), square=True),  # block, tapering out
    Brow((0, 5, 1), (3, 7, 9), square=True),  # tapering in
    Brow((3, -3, 4), (6, 6, 3)),  # sagging
    Brow((-2, 7, -8), (9, 9, 6)),  # hooked
    Brow((0, 6, 2), (9, 9, 8), square=True),  # bushy
)


@dataclass(frozen=True)
class _Eye:
    white: skia.Path
    iris: skia.Path
    pupil: skia.Path

    upper_line: skia.Path
    lower_line: skia.Path
    lid: skia.Path
    lashes: skia.Path


@lru_cache(maxsize=16)
def _eye(angle: int) -> _Eye:
    """One eye around the origin, its outer corner towards +x."""
    w, h = EYE_WIDTH, OPENING[angle]
    # Round eyes have their lids far out over the corners; narrow ones run straight into them.
    full = (0.95, 0.72, 0.45)[angle]
    white = skia.Path()
    white.moveTo(-w, 2)
    white.cubicTo(-w * full, -h * 1.3, w * full, -h * 1.3, w, 0)
    white.cubicTo(w * full, h * 1.3, -w * full, h * 1.3, -w, 2)
    white.close()
    upper = skia.Path()
    upper.moveTo(-w - 1, 4)
    upper.cubicTo(-w * full, -h * 1.3 - 1, w * full, -h * 1.3 - 1, w + 5, -2)
    upper.cubicTo(w * full, -h * 1.3 - 6.5, -w * full, -h * 1.3 - 4.5, -w - 1, 4)
    upper.close()
    lower = skia.Path()
    lower.moveTo(w * 0.85, h * 0.42)
    lower.quadTo(w * 0.45, h * 1.0, -w * 0.2, h * 1.02)
    lid = skia.Path()
    lid.addRect(skia.Rect.MakeLTRB(-w - 4, -h - 8, w + 4, -h * 0.26))
    lashes = skia.Path()
    # Two darts that go on from the upper lid.
    for x, y, tip_x, tip_y in ((w - 3, -1.0, w + 12, -6.0), (w - 9, -h * 0.62, w + 7, -h * 0.62 - 7)):
        lashes.moveTo(x - 4, y - 3)
        lashes.quadTo(x + 5, y - 2, tip_x, tip_y)
        lashes.quadTo(x + 7, y + 2.5, x, y + 3)
        lashes.close()
    # The gaze is straight: the iris touches the upper lid.
    return _Eye(
        white=white,
        iris=ellipse(-1, -2, 15.5, 15.5),
        pupil=ellipse(-1, -2.5, 7.5, 8.5),
        upper_line=upper,
        lower_line=lower,
        lid=lid,
        lashes=lashes,
    )


def draw_eyes(canvas: skia.Canvas, labels: Mapping[str, int], skin: RGB) -> None:
    """Both eyes; the right one is mirrored so that outer corners stay outside."""
    eye = _eye(labels["eye_angle"])
    iris = EYES[labels["eye_color"]]
    for side in (-1, 1):
        canvas.save()
        canvas.translate(side * EYE_X, EYE_Y)
        canvas.scale(side, 1)
        canvas.rotate(SLANT_DEGREES[labels["eye_slant"]])
        fill(canvas, eye.white, WHITE)
        canvas.save()
        canvas.clipPath(eye.white, doAntiAlias=True)
        fill(canvas, eye.iris, mix(iris, INK, 0.25))
        canvas.scale(0.84, 0.84)
        fill(canvas, eye.iris, iris)
        canvas.scale(1 / 0.84, 1 / 0.84)
        fill(canvas, eye.pupil, INK)
        # The light comes from one side, whichever way the eye is mirrored.
        canvas.drawCircle(4 * side, -7.5, 2.8, _glint_paint())
        if labels["eye_lid"]:
            fill(canvas, eye.lid, mix(skin, INK, 0.3))
            canvas.restore()
            h = OPENING[labels["eye_angle"]]
            canvas.drawLine(-EYE_WIDTH + 3, -h * 0.26, EYE_WIDTH - 1, -h * 0.26, _lid_paint())
        else:
            canvas.restore()
        fill(canvas, eye.upper_line, INK)
        line(canvas, eye.lower_line, INK, 1.4, alpha=0.5)
        if labels["eye_lashes"]:
            fill(canvas, eye.lashes, INK)
        canvas.restore()


@lru_cache(maxsize=1)
def _glint_paint() -> skia.Paint:
    return skia.Paint(AntiAlias=True, Color=skia.ColorWHITE)


@lru_cache(maxsize=1)
def _lid_paint() -> skia.Paint:
    paint = skia.Paint(AntiAlias=True, Color=skia.Color(*INK), StrokeWidth=3.2)
    paint.setStrokeCap(skia.Paint.kRound_Cap)
    return paint


@lru_cache(maxsize=512)
def _brows(shape: int, thickness: int, width: int) -> skia.Path:
    brow, half = BROWS[shape], 25.0 * BROW_LENGTH[width]
    xs = (-half, -half + 2 * half * brow.arch_at, half)
    scale = BROW_THICKNESS[thickness] * 0.62
    over: list[Point] = []
    under: list[Point] = []
    for x, height, thick in zip(xs, brow.heights, brow.thickness, strict=True):
        over.append((x, -height - thick * scale))
        under.append((x, -height + thick * scale))
    outline = Outline(over[0]).spline(over[1:])
    if brow.square:
        outline.line(under[-1]).spline(list(reversed(under))[1:])
    else:
        outline.spline([(half + 1.5, -brow.heights[2]), under[-1]]).spline(list(reversed(under))[1:])
        outline.spline([(-half - 2, -brow.heights[0]), over[0]])
    path = outline.close()
    placed = skia.Path()
    path.transform(skia.Matrix.Translate(EYE_X + 1, 0), placed)
    return both_sides(placed)


def draw_brows(canvas: skia.Canvas, labels: Mapping[str, int], skin: RGB, hair: RGB) -> None:
    """Both brows, over the eyes and under the hair."""
    path = _brows(labels["eyebrow_shape"], labels["eyebrow_thickness"], labels["eyebrow_width"])
    solid = brow_of(hair)
    canvas.save()
    canvas.translate(0, EYE_Y - BROW_GAP[labels["eye_eyebrow_distance"]])
    fill(canvas, path, solid if labels["eyebrow_weight"] else mix(solid, skin, SOFT_BROW))
    canvas.restore()
