"""Head, ears, nose and mouth: face_shape, chin_length and face_color."""

from __future__ import annotations

from functools import lru_cache

import skia

from shards.standin.artwork.brush import Outline, blob, both_sides, fill, line
from shards.standin.artwork.geometry import MOUTH_Y, NOSE_Y, SKULL_TOP, TEMPLE, TEMPLE_Y, dome, jaw_points
from shards.standin.artwork.palette import INK, RGB, WHITE, mix

OUTLINE = 3.6


@lru_cache(maxsize=64)
def face_path(face_shape: int, chin_length: int) -> skia.Path:
    """Skull and jaw; the skull is the same for every face, so that every hair fits every face."""
    skull = dome(TEMPLE + 1, SKULL_TOP, TEMPLE_Y)  # a dome's ends stand one in
    return Outline(skull[0]).spline(skull[1:]).spline(jaw_points(face_shape, chin_length)[1:]).close()


@lru_cache(maxsize=64)
def jaw_line(face_shape: int, chin_length: int) -> skia.Path:
    """The dark line round the cheeks and the chin: thin at the ears, thick at the chin."""
    outside = jaw_points(face_shape, chin_length, grow=4.2)
    return Outline(outside[0]).spline(outside[1:]).close()


@lru_cache(maxsize=1)
def _ears() -> skia.Path:
    return both_sides(
        blob(
            [
                (74, 262),
                (86, 246),
                (98, 248),
                (110, 257),
                (111, 274),
                (106, 296),
                (96, 314),
                (82, 311),
                (74, 286),
            ]
        )
    )


@lru_cache(maxsize=1)
def _nose() -> skia.Path:
    # A crescent: two arcs between the nostrils.
    path = skia.Path()
    path.moveTo(-18, NOSE_Y - 5)
    path.quadTo(0, NOSE_Y + 12, 18, NOSE_Y - 5)
    path.quadTo(0, NOSE_Y + 3, -18, NOSE_Y - 5)
    path.close()
    return path


@lru_cache(maxsize=1)
def _mouth() -> tuple[skia.Path, skia.Path]:
    lips = skia.Path()
    lips.moveTo(-26, MOUTH_Y - 3)
    lips.quadTo(0, MOUTH_Y + 3, 26, MOUTH_Y - 3)
    lips.cubicTo(17, MOUTH_Y + 20, -17, MOUTH_Y + 20, -26, MOUTH_Y - 3)
    lips.close()
    teeth = skia.Path()
    teeth.moveTo(-20, MOUTH_Y + 1.5)
    teeth.quadTo(0, MOUTH_Y + 4.5, 20, MOUTH_Y + 1.5)
    teeth.cubicTo(13, MOUTH_Y + 15, -13, MOUTH_Y + 15, -20, MOUTH_Y + 1.5)
    teeth.close()
    return lips, teeth


def draw_head(canvas: skia.Canvas, skin: RGB, face_shape: int, chin_length: int) -> None:
    """The bare head: what lies under eyes, hair, beard and glasses."""
    face = face_path(face_shape, chin_length)
    line(canvas, face, INK, OUTLINE)
    line(canvas, _ears(), INK, OUTLINE)
    fill(canvas, _ears(), skin)
    fill(canvas, jaw_line(face_shape, chin_length), INK)
    fill(canvas, face, skin)


def draw_nose_and_mouth(canvas: skia.Canvas, skin: RGB) -> None:
    """Nose and smile; drawn over beards."""
    fill(canvas, _nose(), mix(skin, INK, 0.9))
    lips, teeth = _mouth()
    fill(canvas, lips, INK)
    fill(canvas, teeth, WHITE)
