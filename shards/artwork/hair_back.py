"""Hair behind the head: long hair, tails, braids, buns. Drawn before the head, so only its rim is seen."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import skia

from shards.artwork.brush import Outline, blob, both_sides, ellipse, fill, leaf, line, together
from shards.artwork.geometry import Point, dome, even_points, mirrored
from shards.artwork.palette import RGB, highlight_of, outline_of

OUTLINE = 3.2


def _closed(left: list[Point], top: float) -> skia.Path:
    """A symmetric mass from its left edge, lowest point first."""
    return blob([*left, (0.0, top), *mirrored(left)])


def _bob() -> skia.Path:
    left: list[Point] = [(-62, 372), (-98, 366), (-112, 330), (-112, 270), (-104, 200), (-70, 140)]
    return _closed(left, 122)


def _bob_flipped() -> skia.Path:
    right = Outline((0, 124)).spline([(70, 140), (106, 200), (110, 270), (108, 326), (122, 352), (140, 356)])
    half = right.spline([(122, 374), (90, 372), (60, 356), (0, 350)]).close()
    return both_sides(half)


def _shag() -> skia.Path:
    left = [
        (-104.0, 200.0),
        (-118.0, 250.0),
        (-116.0, 310.0),
        (-106.0, 352.0),
        (-70.0, 384.0),
        (-30.0, 380.0),
    ]
    edge = even_points(list(reversed(left)), 6)
    half = Outline(edge[0]).spikes(edge[1:], [14.0, 10.0, 16.0], lean=-0.6).line((0, 150), (0, 360)).close()
    return both_sides(half)


def _long_straight() -> skia.Path:
    left: list[Point] = [(-66, 424), (-116, 422), (-122, 380), (-116, 280), (-106, 200), (-70, 138)]
    half = Outline((0, 124)).spline([*reversed([(-x, y) for x, y in left])])
    return both_sides(half.line((56, 380), (0, 370)).close())


def _long_wavy() -> skia.Path:
    right = Outline((0, 124)).spline(
        [
            (72, 140),
            (108, 190),
            (104, 230),
            (122, 262),
            (112, 298),
            (132, 330),
            (118, 362),
            (138, 396),
            (116, 422),
        ]
    )
    return both_sides(right.spline([(92, 424), (64, 414), (44, 380), (0, 370)]).close())


def _long_curly() -> skia.Path:
    edge = even_points([(40, 110), (104, 150), (126, 220), (134, 300), (136, 370), (104, 414), (60, 404)], 11)
    half = Outline((0, 112)).line(edge[0]).curls(edge[1:], 10.0).line((0, 370)).close()
    return both_sides(half)


def _afro() -> skia.Path:
    edge = even_points(dome(128, 92, 300), 17)
    return Outline(edge[0]).curls(edge[1:], 9.0).spline([(60, 330), (-60, 330), edge[0]]).close()


def _afro_big() -> skia.Path:
    edge = even_points([(-110, 340), *dome(158, 84, 290)[1:-1], (110, 340)], 21)
    return Outline(edge[0]).curls(edge[1:], 9.0).spline([(50, 350), (-50, 350), edge[0]]).close()


def _locs() -> skia.Path:
    locks = [
        leaf(
            [
                (60 + 6 * k, 170),
                (98 + 5 * k, 260 - 10 * k),
                (100 + 9 * k, 330 - 12 * k),
                (96 + 14 * k, 412 - 22 * k),
            ],
            22,
        )
        for k in range(4)
    ]
    return together(*(both_sides(lock) for lock in locks))


def _bun() -> skia.Path:
    return blob([(-32, 124), (-40, 106), (-30, 84), (2, 76), (32, 86), (42, 106), (32, 124)])


def _two_buns() -> skia.Path:
    return both_sides(ellipse(68, 116, 33, 30))


def _ponytail_side() -> skia.Path:
    start = Outline((70, 160)).spline(
        [(106, 156), (132, 186), (126, 220), (146, 250), (132, 284), (150, 318), (128, 346)]
    )
    start.spline([(142, 372), (112, 396)]).spline(
        [(118, 366), (96, 350), (108, 316), (94, 280), (104, 240), (84, 200)]
    )
    return start.close()


def _ponytail_high() -> skia.Path:
    start = Outline((20, 126)).spline(
        [(16, 92), (50, 74), (92, 88), (124, 124), (138, 180), (136, 232), (150, 268)]
    )
    return start.spline([(122, 262), (106, 226), (100, 180), (84, 140), (58, 128)]).close()


def _pigtails() -> skia.Path:
    start = Outline((86, 176)).spline([(112, 150), (146, 168), (164, 220), (158, 276), (168, 316)])
    return both_sides(start.spline([(138, 306), (120, 268), (118, 222), (98, 196), (86, 176)]).close())


def _bubble_braids() -> skia.Path:
    beads = [
        (104, 134, 26, 20),
        (136, 158, 19, 23),
        (148, 194, 15, 21),
        (150, 228, 14, 19),
        (146, 262, 13, 19),
        (138, 292, 9, 16),
    ]
    return both_sides(together(*(ellipse(*bead) for bead in beads)))


def _braids() -> skia.Path:
    beads = [(104 + 1.5 * k, 262 + 25 * k, 19 - 1.2 * k, 17.0) for k in range(6)]
    return both_sides(together(*(ellipse(*bead) for bead in beads), ellipse(112, 412, 7, 12)))


def _braid_side() -> skia.Path:
    beads = [(96 + 7 * k, 296 + 21 * k, 23 - 1.6 * k, 17.0) for k in range(6)]
    nape = blob([(60, 250), (100, 252), (116, 280), (104, 310), (76, 320), (50, 300)])
    return together(nape, *(ellipse(*bead) for bead in beads), ellipse(132, 412, 8, 14))


BACKS: dict[str, Callable[[], skia.Path]] = {
    "bob": _bob,
    "bob_flipped": _bob_flipped,
    "shag": _shag,
    "long_straight": _long_straight,
    "long_wavy": _long_wavy,
    "long_curly": _long_curly,
    "afro": _afro,
    "afro_big": _afro_big,
    "locs": _locs,
    "bun": _bun,
    "two_buns": _two_buns,
    "ponytail_side": _ponytail_side,
    "ponytail_high": _ponytail_high,
    "pigtails": _pigtails,
    "bubble_braids": _bubble_braids,
    "braids": _braids,
    "braid_side": _braid_side,
}

# Light on what stands out from the head.
_STRANDS: dict[str, Callable[[], skia.Path]] = {
    "bun": lambda: leaf([(-16, 96), (4, 88), (20, 92), (30, 106)], 7.0),
    "two_buns": lambda: both_sides(leaf([(58, 100), (74, 97), (86, 106), (88, 118)], 6.0)),
    "ponytail_side": lambda: leaf([(118, 180), (116, 220), (132, 254), (120, 300)], 7.0),
    "ponytail_high": lambda: leaf([(60, 92), (94, 108), (118, 146), (126, 196)], 7.0),
    "pigtails": lambda: both_sides(leaf([(130, 176), (146, 210), (144, 250), (150, 284)], 7.0)),
}


@lru_cache(maxsize=32)
def _path(back: str) -> skia.Path:
    return BACKS[back]()


@lru_cache(maxsize=32)
def _shine(back: str) -> skia.Path:
    return _STRANDS[back]()


def draw_back(canvas: skia.Canvas, back: str, hair: RGB) -> None:
    """The part called ``back``; nothing for "none"."""
    if back == "none":
        return
    path = _path(back)
    # Line first, then fill: parts that overlap melt into one silhouette.
    if back in ("locs", "bubble_braids", "braids", "braid_side", "two_buns"):
        fill(canvas, path, hair)
        line(canvas, path, outline_of(hair), OUTLINE)
    else:
        line(canvas, path, outline_of(hair), 2 * OUTLINE * 0.8)
        fill(canvas, path, hair)
    if back in _STRANDS:
        fill(canvas, _shine(back), highlight_of(hair))
