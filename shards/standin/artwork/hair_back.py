"""Hair behind the head: long hair, tails, braids, buns. Drawn before the head, so only its rim is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import skia

from shards.standin.artwork.brush import (
    Outline,
    blob,
    both_sides,
    curve,
    ellipse,
    fill,
    leaf,
    line,
    shape,
    thick,
    together,
)
from shards.standin.artwork.geometry import Point, dome, even_points, mirrored
from shards.standin.artwork.palette import RGB, highlight_of, outline_of

OUTLINE = 3.2


@dataclass(frozen=True)
class Back:
    """What hangs behind: its silhouette, lines between locks, strands of light, or overlapping pieces.

    ``pieces`` (beads of a braid, locs) are drawn one over the other, each with its own line.
    """

    mass: skia.Path | None = None
    locks: skia.Path | None = None
    light: skia.Path | None = None
    pieces: tuple[skia.Path, ...] = ()


def _bob() -> Back:
    left: list[Point] = [(-62, 374), (-100, 366), (-113, 330), (-112, 270), (-103, 200), (-72, 146)]
    mass = blob([*left, (0, 122), *mirrored(left)])
    return Back(mass, locks=both_sides(curve([(104, 300), (105, 330), (98, 352)])))


def _bob_flipped() -> Back:
    right = Outline((0, 124)).spline([(72, 146), (104, 200), (110, 270), (107, 322), (120, 348), (142, 354)])
    half = right.spline([(124, 374), (92, 374), (60, 358), (0, 350)]).close()
    return Back(both_sides(half), locks=both_sides(curve([(100, 318), (106, 346), (120, 360)])))


def _shag() -> Back:
    edge = even_points([(-30, 384), (-72, 384), (-106, 352), (-115, 305), (-116, 250), (-100, 186)], 7)
    half = Outline(edge[0]).spikes(edge[1:], [12.0, 17.0, 10.0], lean=-0.65).line((0, 150), (0, 360)).close()
    return Back(both_sides(half), locks=both_sides(curve([(104, 290), (102, 326), (88, 352)])))


def _long_straight() -> Back:
    right: list[Point] = [(72, 146), (104, 200), (116, 280), (122, 380), (114, 421), (66, 424)]
    half = Outline((0, 124)).spline(right).line((56, 380), (0, 370)).close()
    locks = together(curve([(100, 318), (104, 370), (100, 410)]), curve([(84, 360), (86, 390), (82, 416)]))
    return Back(both_sides(half), locks=both_sides(locks))


def _long_wavy() -> Back:
    wave: list[Point] = [(122, 262), (112, 298), (132, 330), (118, 362), (138, 396), (116, 422)]
    right = Outline((0, 124)).spline([(74, 148), (106, 190), (104, 230), *wave])
    half = right.spline([(92, 424), (64, 414), (44, 380), (0, 370)]).close()
    locks = curve([(102, 312), (114, 336), (100, 364), (116, 392), (104, 412)])
    light = leaf([(114, 258), (106, 296), (122, 328), (112, 352)], 6.0)
    return Back(both_sides(half), both_sides(locks), both_sides(light))


def _long_curly() -> Back:
    edge = even_points([(40, 112), (100, 150), (122, 220), (132, 300), (132, 366), (104, 408), (60, 404)], 9)
    half = Outline((0, 112)).line(edge[0]).curls(edge[1:], [10.0, 15.0, 12.0]).line((0, 370)).close()
    light = together(
        leaf([(112, 200), (120, 216), (118, 236), (110, 248)], 6.0),
        leaf([(122, 284), (128, 304), (122, 326), (114, 336)], 6.0),
    )
    return Back(both_sides(half), light=both_sides(light))


def _afro() -> Back:
    nape: list[Point] = [(100, 318), (58, 340)]
    edge = even_points([*mirrored(nape), *dome(122, 96, 290)[1:-1], *nape], 18)
    return Back(Outline(edge[0]).curls(edge[1:], [9.0, 14.0, 11.0]).close())


def _afro_big() -> Back:
    nape: list[Point] = [(112, 336), (56, 352)]
    edge = even_points([*mirrored(nape), *dome(154, 88, 290)[1:-1], *nape], 23)
    return Back(Outline(edge[0]).curls(edge[1:], [8.0, 11.0]).close())


def _locs() -> Back:
    pieces = []
    for k in range(4):
        top, knee = (62.0 + 8 * k, 176.0 + 6 * k), (96.0 + 9 * k, 262.0 - 4 * k)
        loc = curve([top, knee, (96 + 11 * k, 330 - 8 * k), (92 + 13 * k, 404 - 24 * k)])
        pieces.append(both_sides(thick(loc, 17.0)))
    return Back(pieces=tuple(reversed(pieces)))


def _bun() -> Back:
    mass = blob([(-32, 124), (-41, 106), (-32, 84), (0, 75), (32, 85), (43, 106), (32, 124)])
    locks = curve([(-28, 112), (-14, 94), (14, 88), (28, 102), (18, 112)])
    return Back(mass, locks, leaf([(-20, 98), (-6, 88), (10, 84), (22, 88)], 6.0))


def _two_buns() -> Back:
    bun = ellipse(68, 113, 34, 31)
    locks = curve([(50, 118), (60, 100), (80, 102), (84, 118), (72, 124)])
    light = leaf([(54, 98), (68, 90), (82, 95), (90, 106)], 6.0)
    return Back(both_sides(bun), both_sides(locks), both_sides(light))


def _ponytail_side() -> Back:
    outer: list[Point] = [(106, 156), (132, 186), (126, 220), (146, 250), (132, 284), (150, 318), (128, 346)]
    inner: list[Point] = [(118, 366), (96, 350), (108, 316), (94, 280), (104, 240), (84, 200)]
    mass = Outline((70, 160)).spline(outer).spline([(142, 372), (112, 396)]).spline(inner).close()
    locks = curve([(110, 190), (108, 224), (122, 256), (112, 288), (124, 318), (114, 340)])
    return Back(mass, locks, leaf([(118, 180), (116, 220), (134, 252), (124, 292)], 6.0))


def _ponytail_high() -> Back:
    outer: list[Point] = [(16, 92), (50, 74), (92, 88), (124, 124), (138, 180), (136, 232), (152, 272)]
    mass = Outline((20, 126)).spline(outer).spline([(122, 264), (106, 226), (100, 180), (84, 140), (58, 128)])
    locks = curve([(50, 104), (86, 116), (112, 160), (118, 216), (128, 246)])
    return Back(mass.close(), locks, leaf([(60, 90), (94, 104), (120, 144), (128, 190)], 7.0))


def _pigtails() -> Back:
    mass = Outline((86, 176)).spline([(112, 150), (146, 168), (164, 220), (158, 276), (168, 316)])
    mass.spline([(138, 306), (120, 268), (118, 222), (98, 196), (86, 176)])
    locks = curve([(122, 184), (136, 218), (136, 260), (150, 296)])
    light = leaf([(132, 172), (148, 208), (148, 248), (152, 280)], 6.0)
    return Back(both_sides(mass.close()), both_sides(locks), both_sides(light))


def _bubble_braids() -> Back:
    upper = [(102, 132, 28, 20), (136, 156, 20, 24), (149, 193, 15, 21)]
    lower = [(150, 228, 14, 19), (146, 262, 13, 19), (140, 290, 9, 16)]
    beads = [ellipse(*bead) for bead in (*upper, *lower)]
    light = leaf([(86, 124), (100, 118), (116, 122), (124, 130)], 6.0)
    return Back(both_sides(together(*beads)), light=both_sides(light))


def _braids() -> Back:
    beads = [ellipse(104 + 1.5 * k, 262 + 25 * k, 19 - 1.2 * k, 17) for k in range(6)]
    return Back(pieces=tuple(both_sides(piece) for piece in (ellipse(113, 411, 7, 13), *reversed(beads))))


def _braid_side() -> Back:
    beads = [ellipse(96 + 7 * k, 296 + 21 * k, 23 - 1.6 * k, 17) for k in range(6)]
    nape = blob([(60, 250), (100, 252), (116, 280), (104, 310), (76, 320), (50, 300)])
    return Back(pieces=(ellipse(133, 411, 8, 14), *reversed(beads), nape))


BACKS: dict[str, Callable[[], Back]] = {
    "none": Back,
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

# These flow into the hair in front: no line between the two.
FLOWING = frozenset(
    ["bob", "bob_flipped", "shag", "long_straight", "long_wavy", "long_curly", "afro", "afro_big"]
)


@lru_cache(maxsize=32)
def _back(name: str) -> Back:
    return BACKS[name]()


def draw_back(canvas: skia.Canvas, name: str, hair: RGB) -> None:
    """The part called ``name``."""
    back, edge = _back(name), outline_of(hair)
    for piece in back.pieces:
        shape(canvas, piece, hair, edge, OUTLINE)
    if back.mass is not None:
        # Line first, then fill: parts that overlap melt into one silhouette.
        line(canvas, back.mass, edge, 2 * OUTLINE * 0.8)
        fill(canvas, back.mass, hair)
    if back.light is not None:
        fill(canvas, back.light, highlight_of(hair))
    if back.locks is not None:
        line(canvas, back.locks, edge, 2.4)
