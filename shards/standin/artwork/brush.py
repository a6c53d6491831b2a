"""Paths and paints: the few strokes from which every avatar is drawn. Needs skia."""

from __future__ import annotations

from functools import lru_cache

import skia

from shards.standin.artwork.geometry import Point, catmull_rom
from shards.standin.artwork.palette import RGB


class Outline:
    """A path under construction. Edges run clockwise, so "outwards" is to the left of the way."""

    def __init__(self, start: Point) -> None:
        self.path = skia.Path()
        self.path.moveTo(*start)
        self.at = start

    def line(self, *points: Point) -> Outline:
        """Straight to each point in turn."""
        for point in points:
            self.path.lineTo(*point)
            self.at = point
        return self

    def spline(self, points: list[Point]) -> Outline:
        """One smooth curve from here through all points."""
        for c1, c2, end in catmull_rom([self.at, *points]):
            self.path.cubicTo(*c1, *c2, *end)
        self.at = points[-1]
        return self

    def curls(self, points: list[Point], depths: list[float]) -> Outline:
        """Round bumps outwards, one between each two points; ``depths`` repeats."""
        for index, end in enumerate(points):
            (x0, y0), (x1, y1) = self.at, end
            out_x, out_y = _outwards(self.at, end, depths[index % len(depths)] * 1.33)
            # Control points wider than the chord make the bump bulge like a lock of hair.
            dx, dy = (x1 - x0) * 0.12, (y1 - y0) * 0.12
            self.path.cubicTo(x0 - dx + out_x, y0 - dy + out_y, x1 + dx + out_x, y1 + dy + out_y, x1, y1)
            self.at = end
        return self

    def spikes(self, points: list[Point], depths: list[float], lean: float = 0.0) -> Outline:
        """Curved points outwards, one between each two points; ``lean`` > 0 bends them onwards.

        ``depths`` repeats when there are more spikes than depths.
        """
        for index, end in enumerate(points):
            (x0, y0), (x1, y1) = self.at, end
            out_x, out_y = _outwards(self.at, end, depths[index % len(depths)])
            dx, dy = (x1 - x0), (y1 - y0)
            tip = (x0 + dx * (0.5 + lean) + out_x, y0 + dy * (0.5 + lean) + out_y)
            self.path.quadTo(x0 + dx * 0.08 + out_x * 0.62, y0 + dy * 0.08 + out_y * 0.62, *tip)
            self.path.quadTo(x1 + dx * 0.02 + out_x * 0.38, y1 + dy * 0.02 + out_y * 0.38, x1, y1)
            self.at = end
        return self

    def close(self) -> skia.Path:
        """The finished, closed path."""
        self.path.close()
        return self.path


def _outwards(start: Point, end: Point, depth: float) -> Point:
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = max((dx * dx + dy * dy) ** 0.5, 1e-6)
    return dy / length * depth, -dx / length * depth


def blob(points: list[Point]) -> skia.Path:
    """A smooth closed shape through points."""
    # Starting in the middle of a run of points on both sides makes the seam as smooth as the rest.
    around = [points[-1], *points, points[0], points[1]]
    path = skia.Path()
    path.moveTo(*points[0])
    for c1, c2, end in catmull_rom(around)[1:-1]:
        path.cubicTo(*c1, *c2, *end)
    path.close()
    return path


def curve(points: list[Point]) -> skia.Path:
    """An open smooth line through points."""
    return Outline(points[0]).spline(points[1:]).path


def leaf(points: list[Point], width: float) -> skia.Path:
    """A lock: a curve through points that swells to ``width`` in its middle and tapers at both ends."""
    last = len(points) - 1
    over, under = [], []
    for index, (x, y) in enumerate(points[1:-1], start=1):
        (x0, y0), (x1, y1) = points[index - 1], points[index + 1]
        swell = min(1.0, 2 * min(index, last - index) / last + 0.3)
        nx, ny = _outwards((x0, y0), (x1, y1), width / 2 * swell)
        over.append((x + nx, y + ny))
        under.append((x - nx, y - ny))
    return Outline(points[0]).spline([*over, points[-1]]).spline([*reversed(under), points[0]]).close()


def ellipse(x: float, y: float, rx: float, ry: float) -> skia.Path:
    """An axis-parallel ellipse."""
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(x - rx, y - ry, x + rx, y + ry))
    return path


def flipped(path: skia.Path) -> skia.Path:
    """The same path on the other side of the face."""
    other = skia.Path()
    path.transform(skia.Matrix.Scale(-1, 1), other)
    return other


def together(*paths: skia.Path) -> skia.Path:
    """Several paths drawn as one."""
    whole = skia.Path()
    for path in paths:
        whole.addPath(path)
    return whole


def both_sides(path: skia.Path) -> skia.Path:
    """The path and its mirror image."""
    return together(path, flipped(path))


def thick(path: skia.Path, width: float) -> skia.Path:
    """The outline of a line of ``width`` with round ends."""
    outline = skia.Path()
    _paint((0, 0, 0), width, 1.0).getFillPath(path, outline)
    return outline


def overlap(path: skia.Path, inside: skia.Path) -> skia.Path:
    """The part of ``path`` that lies inside another one."""
    return skia.Op(path, inside, skia.PathOp.kIntersect_PathOp)


@lru_cache(maxsize=512)
def _paint(color: RGB, width: float, alpha: float) -> skia.Paint:
    paint = skia.Paint(AntiAlias=True, Color=skia.Color(*color, round(255 * alpha)))
    if width:
        paint.setStyle(skia.Paint.kStroke_Style)
        paint.setStrokeWidth(width)
        paint.setStrokeCap(skia.Paint.kRound_Cap)
        paint.setStrokeJoin(skia.Paint.kRound_Join)
    return paint


def fill(canvas: skia.Canvas, path: skia.Path, color: RGB, alpha: float = 1.0) -> None:
    """Fill a path with one colour."""
    canvas.drawPath(path, _paint(color, 0.0, alpha))


def line(canvas: skia.Canvas, path: skia.Path, color: RGB, width: float, alpha: float = 1.0) -> None:
    """Draw a path's line with round ends and corners."""
    canvas.drawPath(path, _paint(color, width, alpha))


def shape(canvas: skia.Canvas, path: skia.Path, color: RGB, edge: RGB, width: float) -> None:
    """Fill a path and draw its edge."""
    fill(canvas, path, color)
    line(canvas, path, edge, width)
