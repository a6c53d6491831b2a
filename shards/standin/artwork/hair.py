"""Hair in front of the head: the outer edge (``TOPS``), the hairline (``LINES``), strands and shine.

Hair is one closed path: a top from the left ear over the crown to the right ear, then a hairline back
along the forehead. Any top goes with any hairline; ``hair_styles`` says which pairs are used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import skia

from shards.standin.artwork.brush import (
    Outline,
    both_sides,
    curve,
    fill,
    leaf,
    line,
    overlap,
    shape,
    together,
)
from shards.standin.artwork.geometry import Point, dome, even_points, mirrored
from shards.standin.artwork.hair_back import FLOWING, draw_back
from shards.standin.artwork.hair_styles import BALD_HAIR, HAIR_STYLES, HairStyle
from shards.standin.artwork.palette import INK, RGB, WHITE, highlight_of, mix, outline_of

OUTLINE = 3.2
EAR: Point = (95.0, 250.0)


def _smooth(points: list[Point]) -> Outline:
    return Outline(points[0]).spline(points[1:])


def _cap() -> Outline:
    return _smooth(dome(97, 117))


def _crop() -> Outline:
    edge = even_points(dome(96, 118), 22)
    return Outline(edge[0]).line(edge[2]).spikes(edge[3:-2], [4.0, 5.5], lean=0.15).line(edge[-1])


def _spiky() -> Outline:
    edge = even_points(dome(95, 122), 16)
    start = Outline(edge[0]).spline([edge[1], edge[3]])
    return start.spikes(edge[4:-3], [16.0, 24.0, 20.0, 28.0, 24.0, 20.0], lean=0.35).spline(edge[-2:])


def _quiff() -> Outline:
    # Swept up and to the right, in three locks that open to the left.
    start = Outline((-96, 250)).spline([(-98, 206), (-96, 168), (-104, 138)]).spline([(-86, 142), (-82, 120)])
    start.spline([(-64, 116), (-34, 106), (-14, 88)]).spline([(-4, 96), (30, 96), (62, 78)])
    return start.spline([(66, 88), (86, 96), (98, 94)]).spline([(92, 112), (96, 150), (98, 206), (96, 250)])


def _pompadour() -> Outline:
    left: list[Point] = [(-96, 250), (-97, 206), (-96, 160), (-104, 128), (-82, 96), (-40, 82)]
    right: list[Point] = [(40, 80), (82, 94), (104, 126), (96, 160), (97, 206), (96, 250)]
    return _smooth([*left, (0, 85), *right])


def _flattop() -> Outline:
    start = _smooth([(-96, 250), (-97, 200)]).spline([(-97, 140), (-95, 98)])
    return start.spline([(-60, 93), (0, 92), (60, 93), (95, 98)]).spline([(97, 140), (97, 200), (96, 250)])


def _wave() -> Outline:
    left: list[Point] = [(-101, 214), (-92, 190), (-101, 166), (-84, 142), (-76, 120), (-44, 112), (-22, 98)]
    right: list[Point] = [(14, 106), (40, 102), (72, 122), (80, 142), (100, 164), (93, 190), (102, 214)]
    return _smooth([(-97, 250), *left, *right, (96, 250)])


def _curly() -> Outline:
    edge = even_points(dome(99, 117, 246), 12)
    return Outline(edge[0]).curls(edge[1:], [9.0, 14.0, 10.0, 12.0]).line((96, 250))


def _messy() -> Outline:
    edge = even_points(dome(99, 117), 15)
    rising = Outline(edge[0]).spikes(edge[1:8], [9.0, 15.0, 7.0], lean=-0.5)
    return rising.spikes(edge[8:], [12.0, 7.0, 16.0], lean=0.5)


def _parted() -> Outline:
    start = _smooth([(-97, 250), (-103, 208), (-95, 158), (-62, 120), (-22, 112), (40, 124)])
    return start.spline([(60, 118), (88, 140), (103, 180), (104, 214), (97, 250)])


def _bowl() -> Outline:
    left: list[Point] = [(-99, 254), (-110, 238), (-110, 200), (-96, 148), (-56, 116)]
    return _smooth([*left, (0, 108), *mirrored(left)])


TOPS: dict[str, Callable[[], Outline]] = {
    "cap": _cap,
    "crop": _crop,
    "spiky": _spiky,
    "quiff": _quiff,
    "pompadour": _pompadour,
    "flattop": _flattop,
    "wave": _wave,
    "curly": _curly,
    "messy": _messy,
    "parted": _parted,
    "bowl": _bowl,
}


def _round(outline: Outline) -> Outline:
    right: list[Point] = [(82, 238), (77, 206), (62, 178), (34, 169)]
    return outline.spline([*right, (0, 167), *mirrored(right)])


def _flat(outline: Outline) -> Outline:
    outline.spline([(81, 226), (77, 190), (73, 172)]).spline([(40, 168), (0, 167), (-40, 168), (-73, 172)])
    return outline.spline([(-77, 190), (-81, 226)])


def _peak(outline: Outline) -> Outline:
    right: list[Point] = [(81, 232), (75, 198), (58, 170), (30, 165)]
    return outline.spline([*right, (0, 184)]).spline(mirrored(right))


def _swept_left(outline: Outline) -> Outline:
    outline.spline([(83, 232), (79, 200), (66, 176), (54, 168)])
    outline.spline([(26, 190), (-20, 206), (-62, 212)]).spline([(-50, 204)])
    return outline.spline([(-74, 216), (-82, 238)])


def _swept_right(outline: Outline) -> Outline:
    outline.spline([(82, 238), (74, 216)]).spline([(50, 204)]).spline([(62, 212)])
    outline.spline([(20, 206), (-26, 190), (-54, 168)])
    return outline.spline([(-66, 176), (-79, 200), (-83, 232)])


def _bangs(outline: Outline) -> Outline:
    outline.spline([(83, 234), (78, 206)]).spline([(40, 203), (0, 202), (-40, 203), (-78, 206)])
    return outline.spline([(-83, 234)])


def _choppy(outline: Outline) -> Outline:
    edge = even_points([(78, 194), (40, 188), (0, 186), (-40, 188), (-78, 196)], 7)
    outline.spline([(83, 234), edge[0]])
    return outline.spikes(edge[1:], [12.0, 18.0, 14.0, 20.0], lean=0.3).spline([(-83, 234)])


def _curtain(outline: Outline) -> Outline:
    outline.spline([(84, 240), (80, 224)]).spline([(56, 198), (24, 180), (0, 164)])
    return outline.spline([(-24, 180), (-56, 198), (-80, 224)]).spline([(-84, 240)])


def _receding(outline: Outline) -> Outline:
    right: list[Point] = [(84, 230), (80, 196), (68, 162), (46, 156), (26, 166)]
    return outline.spline([*right, (0, 172), *mirrored(right)])


def _scallop(outline: Outline) -> Outline:
    edge = even_points([(80, 214), (66, 186), (34, 178), (0, 176), (-34, 178), (-66, 186), (-80, 214)], 7)
    return outline.spline([edge[0]]).curls(edge[1:], [9.0, 12.0])


LINES: dict[str, Callable[[Outline], Outline]] = {
    "round": _round,
    "flat": _flat,
    "peak": _peak,
    "swept_left": _swept_left,
    "swept_right": _swept_right,
    "bangs": _bangs,
    "choppy": _choppy,
    "curtain": _curtain,
    "receding": _receding,
    "scallop": _scallop,
}


@lru_cache(maxsize=256)
def _front(top: str, hairline: str) -> skia.Path:
    outline = TOPS[top]()
    return LINES[hairline](outline).spline([(-EAR[0], EAR[1])]).close()


@lru_cache(maxsize=32)
def _hairline(name: str) -> skia.Path:
    return LINES[name](Outline(EAR)).path


@lru_cache(maxsize=256)
def _highlights(top: str, hairline: str) -> skia.Path:
    """Light on the hair, right of the crown's middle, cut off at the hair's edge."""
    strands = [
        leaf([(22, 139), (40, 138), (54, 146), (40, 147), (62, 149), (84, 166)], 6.5),
        leaf([(34, 155), (50, 152), (64, 157), (76, 168)], 4.5),
    ]
    if top in ("quiff", "pompadour", "flattop"):
        strands.append(leaf([(-34, 110), (8, 104), (42, 106), (68, 116)], 7.0))
    return overlap(together(*strands), _front(top, hairline))


@lru_cache(maxsize=1)
def _curl_of_light() -> skia.Path:
    return curve(
        [(24, 150), (32, 137), (48, 133), (57, 143), (49, 153), (42, 144), (54, 134), (66, 139), (74, 148)]
    )


@lru_cache(maxsize=16)
def _mohawk(top: str) -> skia.Path:
    """A strip from the forehead over the crown; it covers the crown's middle well past the read places."""
    outline = Outline((-42, 168)).spline([(-44, 146), (-40, 124)])
    if top == "mohawk_spiky":
        edge = even_points([(-40, 124), (-22, 116), (0, 114), (22, 116), (40, 124)], 5)
        outline.spikes(edge[1:], [34.0, 40.0], 0.1)
    elif top == "mohawk_curly":
        edge = even_points([(-40, 124), (-44, 100), (0, 84), (44, 100), (40, 124)], 7)
        outline.curls(edge[1:], [7.0])
    else:
        outline.spline([(-39, 104), (-28, 82), (0, 73), (28, 82), (39, 104), (40, 124)])
    return outline.spline([(44, 146), (42, 168)]).spline([(0, 176), (-42, 168)]).close()


@lru_cache(maxsize=16)
def _mohawk_light(top: str) -> skia.Path:
    return overlap(leaf([(20, 104), (29, 122), (31, 140), (28, 158)], 7.0), _mohawk(top))


@lru_cache(maxsize=1)
def _horseshoe() -> skia.Path:
    side = Outline((95, 251)).spline([(82, 240), (78, 214), (82, 190), (86, 176)])
    return both_sides(side.spline([(102, 196), (106, 224), (95, 251)]).close())


@lru_cache(maxsize=1)
def _shine() -> skia.Path:
    return leaf([(34, 142), (50, 150), (62, 166), (68, 184)], 10.0)


def draw_hair_behind(canvas: skia.Canvas, style: int, hair: RGB) -> None:
    """What is drawn before the head."""
    kind = HAIR_STYLES[style]
    if kind.back in FLOWING:
        # Front and back are one mass: their common silhouette has a line, the seam between them none.
        line(canvas, _front(kind.top, kind.line), outline_of(hair), 2 * OUTLINE * 0.8)
    draw_back(canvas, kind.back, hair)


def draw_hair_in_front(canvas: skia.Canvas, style: int, hair: RGB, skin: RGB) -> None:
    """What is drawn over the head and the brows."""
    kind = HAIR_STYLES[style]
    if style in BALD_HAIR:
        _draw_bald(canvas, kind.top, hair, skin)
    elif kind.top.startswith("mohawk"):
        _draw_mohawk(canvas, kind.top, hair, skin)
    else:
        _draw_full(canvas, kind, hair)


def _draw_full(canvas: skia.Canvas, kind: HairStyle, hair: RGB) -> None:
    path, edge = _front(kind.top, kind.line), outline_of(hair)
    fill(canvas, path, hair)
    line(canvas, _hairline(kind.line) if kind.back in FLOWING else path, edge, OUTLINE)
    if kind.top == "curly":
        line(canvas, _curl_of_light(), highlight_of(hair), 4.0)
    else:
        fill(canvas, _highlights(kind.top, kind.line), highlight_of(hair))


def _draw_mohawk(canvas: skia.Canvas, top: str, hair: RGB, skin: RGB) -> None:
    edge = outline_of(hair)
    shape(canvas, _front("cap", "flat"), mix(skin, hair, 0.35), mix(skin, edge, 0.6), OUTLINE)
    shape(canvas, _mohawk(top), hair, edge, OUTLINE)
    fill(canvas, _mohawk_light(top), highlight_of(hair))


def _draw_bald(canvas: skia.Canvas, top: str, hair: RGB, skin: RGB) -> None:
    if top == "shaven":
        shadow = mix(skin, hair, 0.22)
        shape(canvas, _front("cap", "round"), shadow, mix(shadow, INK, 0.6), OUTLINE)
    elif top == "horseshoe":
        shape(canvas, _horseshoe(), hair, outline_of(hair), OUTLINE)
    elif top == "bald_shine":
        fill(canvas, _shine(), mix(skin, WHITE, 0.5))
