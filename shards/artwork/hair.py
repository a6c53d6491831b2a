"""Hair in front of the head: the outer edge (``TOPS``), the hairline (``LINES``), strands and shine.

Hair is one closed path: a top from the left ear over the crown to the right ear, then a hairline back
along the forehead. Any top goes with any hairline; ``hair_styles`` says which pairs are used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import skia

from shards.artwork.brush import Outline, both_sides, curve, fill, leaf, line, shape, together
from shards.artwork.geometry import Point, dome, even_points, mirrored
from shards.artwork.hair_back import draw_back
from shards.artwork.hair_styles import BALD_HAIR, HAIR_STYLES
from shards.artwork.palette import RGB, WHITE, highlight_of, mix, outline_of

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
    spikes = [16.0, 24.0, 20.0, 28.0, 24.0, 20.0]
    return (
        Outline(edge[0])
        .spline([edge[1], edge[3]])
        .spikes(edge[4:-3], spikes, lean=0.35)
        .spline([edge[-2], edge[-1]])
    )


def _quiff() -> Outline:
    start = Outline((-96, 250)).spline(
        [(-98, 206), (-93, 160), (-84, 132), (-58, 108), (-14, 94), (34, 84), (84, 74)]
    )
    return start.spline([(79, 88), (104, 92)]).spline([(95, 112), (98, 150), (98, 206), (96, 250)])


def _pompadour() -> Outline:
    left = [(-96.0, 250.0), (-97.0, 206.0), (-96.0, 160.0), (-104.0, 128.0), (-82.0, 96.0), (-40.0, 82.0)]
    return _smooth([*left, (0.0, 85.0), *[(x, y - 2) for x, y in mirrored(left)[:-1]], (96.0, 250.0)])


def _flattop() -> Outline:
    return (
        _smooth([(-96, 250), (-97, 200)])
        .spline([(-97, 140), (-95, 98)])
        .spline([(-60, 93), (0, 92), (60, 93), (95, 98)])
        .spline([(97, 140), (97, 200), (96, 250)])
    )


def _wave() -> Outline:
    start = Outline((-97, 250)).spline(
        [(-101, 214), (-92, 190), (-101, 166), (-84, 142), (-76, 120), (-44, 112)]
    )
    return start.spline(
        [(-22, 98), (14, 106), (40, 102), (72, 122), (80, 142), (100, 164), (93, 190), (102, 214), (96, 250)]
    )


def _curly() -> Outline:
    edge = even_points(dome(100, 116, 244), 15)
    return Outline(edge[0]).curls(edge[1:], 9.0).line((96, 250))


def _messy() -> Outline:
    edge = even_points(dome(99, 117), 15)
    first, second = edge[1:8], edge[8:]
    return (
        Outline(edge[0])
        .spikes(first, [9.0, 15.0, 7.0], lean=-0.5)
        .spikes(second, [12.0, 7.0, 16.0], lean=0.5)
    )


def _parted() -> Outline:
    start = _smooth([(-97, 250), (-103, 208), (-95, 158), (-62, 120), (-22, 112), (40, 124)])
    return start.spline([(60, 118), (88, 140), (103, 180), (104, 214), (97, 250)])


def _bowl() -> Outline:
    left = [(-99.0, 254.0), (-110.0, 238.0), (-110.0, 200.0), (-96.0, 148.0), (-56.0, 116.0)]
    return _smooth([*left, (0.0, 108.0), *mirrored(left)])


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

_ROUND: list[Point] = [(82, 238), (77, 206), (62, 178), (34, 169), (0, 167)]


def _round(outline: Outline) -> Outline:
    return outline.spline([*_ROUND, *mirrored(_ROUND)[1:]])


def _flat(outline: Outline) -> Outline:
    outline.spline([(81, 226), (77, 190), (73, 172)]).spline([(40, 168), (0, 167), (-40, 168), (-73, 172)])
    return outline.spline([(-77, 190), (-81, 226)])


def _peak(outline: Outline) -> Outline:
    right: list[Point] = [(81, 232), (75, 198), (58, 170), (30, 165)]
    return outline.spline([*right, (0, 184)]).spline(mirrored(right))


def _swept_left(outline: Outline) -> Outline:
    outline.spline([(83, 232), (79, 200), (66, 176), (54, 168)])
    return (
        outline.spline([(26, 190), (-20, 206), (-62, 212)])
        .spline([(-50, 204)])
        .spline([(-74, 216), (-82, 238)])
    )


def _swept_right(outline: Outline) -> Outline:
    outline.spline([(82, 236), (76, 214)]).spline([(50, 202), (66, 212)]).spline(
        [(16, 204), (-28, 188), (-56, 166)]
    )
    return outline.spline([(-68, 178), (-79, 202), (-83, 232)])


def _bangs(outline: Outline) -> Outline:
    outline.spline([(83, 234), (78, 206)]).spline([(40, 203), (0, 202), (-40, 203), (-78, 206)])
    return outline.spline([(-83, 234)])


def _choppy(outline: Outline) -> Outline:
    outline.spline([(83, 234), (78, 200)])
    edge = even_points([(78, 192), (40, 188), (0, 186), (-40, 188), (-78, 196)], 7)
    return outline.spikes(edge, [12.0, 18.0, 14.0, 20.0], lean=0.3).spline([(-83, 234)])


def _curtain(outline: Outline) -> Outline:
    right: list[Point] = [(84, 240), (80, 224)]
    return (
        outline.spline([*right])
        .spline([(52, 200), (22, 178), (0, 164)])
        .spline([(-22, 178), (-52, 200), (-80, 224)])
        .spline([(-84, 240)])
    )


def _receding(outline: Outline) -> Outline:
    right: list[Point] = [(84, 230), (80, 196), (68, 162), (46, 156), (26, 166)]
    return outline.spline([*right, (0, 172), *mirrored(right)])


def _scallop(outline: Outline) -> Outline:
    edge = even_points([(80, 214), (66, 186), (34, 178), (0, 176), (-34, 178), (-66, 186), (-80, 214)], 7)
    return outline.spline([edge[0]]).curls(edge[1:], 9.0)


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


@lru_cache(maxsize=16)
def _mohawk(top: str) -> skia.Path:
    """A strip from the forehead over the crown; it covers the crown's middle well past the read places."""
    outline = Outline((-42, 168)).spline([(-44, 146), (-40, 124)])
    if top == "mohawk_spiky":
        outline.spikes(
            even_points([(-40, 124), (-22, 116), (0, 114), (22, 116), (40, 124)], 5)[1:], [34.0, 40.0], 0.1
        )
    elif top == "mohawk_curly":
        outline.curls(even_points([(-40, 124), (-44, 100), (0, 84), (44, 100), (40, 124)], 7)[1:], 7.0)
    else:
        outline.spline([(-42, 100), (-22, 80), (0, 75), (22, 80), (42, 100), (40, 124)])
    return outline.spline([(44, 146), (42, 168)]).spline([(0, 176), (-42, 168)]).close()


@lru_cache(maxsize=1)
def _horseshoe() -> skia.Path:
    side = Outline((95, 251)).spline([(82, 240), (78, 214), (84, 190), (90, 176)])
    return both_sides(side.spline([(104, 196), (106, 224), (95, 251)]).close())


@lru_cache(maxsize=1)
def _shine() -> skia.Path:
    return leaf([(34, 142), (52, 150), (66, 166), (72, 184)], 9.0)


@lru_cache(maxsize=32)
def _strands(top: str) -> skia.Path:
    """Highlights, right of the crown's middle."""
    if "curly" in top:
        return curve([(24, 150), (34, 136), (50, 134), (56, 146), (46, 152), (42, 142), (54, 134), (70, 144)])
    return together(
        leaf([(26, 139), (44, 139), (60, 145), (80, 158)], 6.0),
        leaf([(34, 150), (50, 150), (64, 155), (74, 163)], 5.0),
        *(
            [leaf([(-30, 104), (10, 96), (48, 94), (72, 100)], 6.0)]
            if top in ("quiff", "pompadour", "flattop")
            else []
        ),
    )


def draw_hair_behind(canvas: skia.Canvas, style: int, hair: RGB) -> None:
    """What is drawn before the head."""
    draw_back(canvas, HAIR_STYLES[style].back, hair)


def draw_hair_in_front(canvas: skia.Canvas, style: int, hair: RGB, skin: RGB) -> None:
    """What is drawn over the head and the brows."""
    kind = HAIR_STYLES[style]
    if style in BALD_HAIR:
        _draw_bald(canvas, kind.top, hair, skin)
        return
    edge = outline_of(hair)
    if kind.top.startswith("mohawk"):
        shape(canvas, _front("cap", "flat"), mix(skin, hair, 0.35), mix(skin, edge, 0.6), OUTLINE)
        shape(canvas, _mohawk(kind.top), hair, edge, OUTLINE)
    else:
        shape(canvas, _front(kind.top, kind.line), hair, edge, OUTLINE)
    if "curly" in kind.top:
        line(canvas, _strands(kind.top), highlight_of(hair), 4.0)
    else:
        fill(canvas, _strands(kind.top), highlight_of(hair))


def _draw_bald(canvas: skia.Canvas, top: str, hair: RGB, skin: RGB) -> None:
    if top == "shaven":
        fill(canvas, _front("cap", "round"), mix(skin, hair, 0.22))
    elif top == "horseshoe":
        shape(canvas, _horseshoe(), hair, outline_of(hair), OUTLINE)
    elif top == "bald_shine":
        fill(canvas, _shine(), mix(skin, WHITE, 0.5))
