"""Glasses: ``glasses`` (eleven shapes; 11 is none) and ``glasses_color`` (the frame).

Lenses end above y = 289, so that the cheeks below them always show the skin's colour.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import skia

from shards.standin.artwork.brush import Outline, blob, both_sides, curve, ellipse, fill, line
from shards.standin.artwork.geometry import EYE_X, Point
from shards.standin.artwork.palette import GLASSES, INK, RGB, WHITE, mix

NO_GLASSES = 11
LENS_Y = 259.0


@dataclass(frozen=True)
class Frame:
    """A pair of glasses: the lens's shape, the frame's line and how dark the lens is (0: clear)."""

    lens: str
    line: float = 4.2
    tint: float = 0.0
    browline: bool = False


FRAMES: tuple[Frame, ...] = (
    Frame("round"),
    Frame("square"),
    Frame("slim"),
    Frame("cat"),
    Frame("heart", line=5.0),
    Frame("aviator"),
    Frame("square", line=3.0, browline=True),
    Frame("oval", line=7.5),
    Frame("hexagon"),
    Frame("wayfarer", line=5.0, tint=0.82),
    Frame("round", line=5.0, tint=0.82),
)

# The right lens around its own middle, outer side towards +x; half-heights stay within 27.
_LENSES: dict[str, list[Point]] = {
    "cat": [(-28, -12), (-4, -18), (22, -23), (37, -28), (33, -6), (22, 14), (0, 20), (-20, 15), (-28, 2)],
    "heart": [],
    "aviator": [(-30, -18), (0, -22), (30, -18), (32, -2), (22, 18), (4, 26), (-14, 19), (-26, 4)],
    "wayfarer": [(-30, -19), (0, -22), (34, -23), (34, -8), (25, 16), (6, 22), (-16, 19), (-28, 4)],
}


@lru_cache(maxsize=16)
def _lens(name: str) -> skia.Path:
    if name == "round":
        path = ellipse(0, 0, 27, 27)
    elif name == "oval":
        path = ellipse(0, 0, 31, 20)
    elif name in ("square", "slim"):
        half = 23 if name == "square" else 14
        path = skia.Path()
        path.addRoundRect(skia.Rect.MakeLTRB(-31, -half, 31, half), 8, 8)
    elif name == "hexagon":
        path = Outline((-31, 0)).line((-17, -25), (17, -25), (31, 0), (17, 25), (-17, 25)).close()
    elif name == "heart":
        path = skia.Path()
        path.moveTo(0, 27)
        path.cubicTo(-20, 14, -34, 2, -31, -13)
        path.cubicTo(-28, -29, -6, -29, 0, -14)
        path.cubicTo(6, -29, 28, -29, 31, -13)
        path.cubicTo(34, 2, 20, 14, 0, 27)
        path.close()
    else:
        path = blob(_LENSES[name])
    placed = skia.Path()
    path.transform(skia.Matrix.Translate(EYE_X, LENS_Y), placed)
    return both_sides(placed)


@lru_cache(maxsize=1)
def _bridge() -> skia.Path:
    return curve([(-15, LENS_Y - 6), (0, LENS_Y - 11), (15, LENS_Y - 6)])


@lru_cache(maxsize=1)
def _temples() -> skia.Path:
    return both_sides(curve([(75, LENS_Y - 9), (86, LENS_Y - 10), (95, LENS_Y - 4)]))


@lru_cache(maxsize=1)
def _browline() -> skia.Path:
    inner = [(44.0, LENS_Y - 15), (12.0, LENS_Y - 16), (20.0, LENS_Y - 25)]
    outer = [(66.0, LENS_Y - 26), (78.0, LENS_Y - 18), (74.0, LENS_Y - 12)]
    return both_sides(blob([*inner, *outer]))


def draw_glasses(canvas: skia.Canvas, glasses: int, color: int) -> None:
    """Lenses, bridge and temples; nothing for variant 11."""
    if glasses == NO_GLASSES:
        return
    frame, paint = FRAMES[glasses], GLASSES[color]
    lens = _lens(frame.lens)
    edge = _edge(paint)
    line(canvas, _bridge(), edge, frame.line + 1.6)
    line(canvas, _temples(), edge, frame.line + 1.6)
    line(canvas, lens, edge, frame.line + 1.6)
    if frame.tint:
        fill(canvas, lens, mix(paint, INK, 0.45), frame.tint)
    else:
        fill(canvas, lens, WHITE, 0.16)
    line(canvas, _bridge(), paint, frame.line)
    line(canvas, _temples(), paint, frame.line)
    line(canvas, lens, paint, frame.line)
    if frame.browline:
        fill(canvas, _browline(), paint)


def _edge(color: RGB) -> RGB:
    """A thin darker rim keeps pale frames visible on pale skin."""
    return mix(color, INK, 0.35)
