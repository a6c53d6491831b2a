"""Beards and moustaches in hair colour: ``facial_hair`` (fourteen styles; 14 is none).

Everything stays below y = 318 between x = -60 and 60, so that the cheeks beside the nose show the skin.
"""

from __future__ import annotations

from functools import lru_cache

import skia

from shards.standin.artwork.brush import Outline, blob, both_sides, ellipse, fill, line, shape
from shards.standin.artwork.geometry import CHIN_Y, MOUTH_Y, Point, even_points, jaw_points, mirrored
from shards.standin.artwork.palette import RGB, mix, outline_of

NO_FACIAL_HAIR = 14
NAMES = (
    "stubble",
    "full",
    "long",
    "boxed",
    "goatee",
    "soul patch",
    "moustache",
    "handlebar",
    "pencil",
    "van dyke",
    "side-burns",
    "chin curtain",
    "walrus",
    "circle",
)


def _around_jaw(face: int, chin: int, grow: float, start_y: float) -> list[Point]:
    """The jaw's edge, pushed out by ``grow``, from height ``start_y`` on the right to the left."""
    return [point for point in even_points(jaw_points(face, chin, grow), 30) if point[1] >= start_y]


def _ragged(face: int, chin: int, grow: float, start_y: float, depths: list[float]) -> Outline:
    """A beard's lower edge in locks, clockwise from the right ear to the left one."""
    edge = _around_jaw(face, chin, grow, start_y)
    middle = len(edge) // 2
    # Locks hang down on both sides: onwards on the way down, backwards on the way up.
    outline = Outline(edge[0]).line(*edge[1:3]).spikes(edge[3 : middle + 1], depths, lean=0.55)
    return outline.spikes(edge[middle + 1 : -2], depths[::-1], lean=-0.55).line(*edge[-2:])


def _over_lip(right_end: Point, dip: float) -> list[Point]:
    """A beard's upper edge from the left cheek over the lip to the right cheek."""
    x, y = right_end
    right = [(26.0, 322.0), (46.0, 331.0), (62.0, 331.0), (x - 5, y + 16)]
    return [*mirrored(right), (0.0, 319.0 + dip), *right, (x, y)]


def _mouth_window() -> skia.Path:
    return blob([(-42, 336), (-28, 330), (0, 333), (28, 330), (42, 336), (30, 356), (0, 364), (-30, 356)])


@lru_cache(maxsize=512)
def _beard(name: str, face: int, chin: int) -> skia.Path:
    """A beard that follows the jaw."""
    start = 296.0
    grow, depths = {
        "stubble": (-1.0, [0.0]),
        "full": (5.0, [7.0, 12.0, 4.0]),
        "boxed": (4.0, [1.5]),
        "chin curtain": (4.0, [4.0, 11.0, 6.0]),
        "long": (9.0, [8.0, 13.0, 5.0]),
    }[name]
    if name == "long":
        # Longer at the chin, but always within the crop, which ends at y = 430.
        grow = min(20.0, 414.0 - CHIN_Y[chin])
    outline = _ragged(face, chin, grow, start, depths)
    left = outline.at
    right = (-left[0], left[1])
    if name == "chin curtain":
        edge = reversed(_around_jaw(face, chin, -3.0, start + 24))
        inner = [(x * 0.86, min(y, CHIN_Y[chin] - 12)) for x, y in edge]
        return outline.spline([*inner, right]).close()
    path = outline.spline(_over_lip(right, 0.0)).close()
    if name != "long":
        # The window around the mouth: even-odd filling leaves it open.
        path.addPath(_mouth_window())
        path.setFillType(skia.PathFillType.kEvenOdd)
    return path


def _moustache(points: list[Point]) -> skia.Path:
    """A moustache from its right half's edge: lower middle, tip, upper middle."""
    return blob([*points, *mirrored(points)])


@lru_cache(maxsize=64)
def _fixed(name: str, tip: float) -> skia.Path:
    """A style around the mouth and the chin; ``tip`` is the chin's lowest y."""
    path = skia.Path()
    if name in ("moustache", "van dyke"):
        path = _moustache([(0, 320), (20, 319), (38, 330), (43, 341), (26, 335), (8, 332)])
    elif name == "handlebar":
        end: list[Point] = [(54, 327), (52, 319), (60, 330), (50, 341)]
        path = _moustache([(0, 321), (22, 320), (42, 333), *end, (30, 338), (8, 332)])
    elif name == "pencil":
        path = _moustache([(0, 326), (16, 324), (34, 332), (15, 329), (4, 330)])
    elif name == "walrus":
        path = _moustache([(0, 319), (24, 319), (44, 333), (50, 352), (40, 352), (26, 343), (10, 340)])
    elif name in ("goatee", "soul patch"):
        pass
    elif name == "circle":
        right = [(30.0, 321.0), (43.0, 338.0), (39.0, tip - 14), (24.0, tip + 3)]
        path = blob([(0.0, 320.0), *right, (0.0, tip + 7), *mirrored(right)])
        path.addPath(ellipse(0, MOUTH_Y + 7, 29, 14))
        path.setFillType(skia.PathFillType.kEvenOdd)
    elif name == "side-burns":
        burns = Outline((97, 240)).line((84, 244)).spline([(72, 290), (56, 322), (46, 344), (62, 350)])
        path = both_sides(burns.spline([(78, 326), (86, 300), (97, 240)]).close())
    if name == "goatee" or name == "van dyke":
        width = 30.0 if name == "goatee" else 20.0
        chin = Outline((-width, tip - 20)).spline([(0, tip - 26), (width, tip - 20)])
        right = [(width * 0.9, tip - 2), (width * 0.3, tip + 8)]
        path.addPath(chin.spikes([*right, *mirrored(right), (-width, tip - 20)], [6.0]).close())
    if name == "soul patch":
        path = blob([(-9, 358), (9, 358), (11, 366), (5, tip - 3), (-5, tip - 3), (-11, 366)])
    return path


def draw_facial_hair(canvas: skia.Canvas, style: int, hair: RGB, skin: RGB, face: int, chin: int) -> None:
    """The beard of variant ``style``; nothing for variant 14."""
    if style == NO_FACIAL_HAIR:
        return
    name = NAMES[style]
    if name == "stubble":
        # Shaven hair: a tint of the skin.
        fill(canvas, _beard(name, face, chin), mix(hair, skin, 0.6))
    elif name in ("full", "long", "boxed", "chin curtain"):
        shape(canvas, _beard(name, face, chin), hair, outline_of(hair), 3.0)
    else:
        path = _fixed(name, CHIN_Y[chin])
        line(canvas, path, outline_of(hair), 4.0)
        fill(canvas, path, hair)
