"""WebPs among source images: lossy, lossless, extended, animated."""

from __future__ import annotations

from tests.support.fuzz.examples import picture, saved
from tests.support.fuzz.reading import source_image
from tests.support.fuzz.target import Target

WORDS = [b"VP8X", b"VP8L", b"VP8 ", b"ANIM", b"ANMF", b"EXIF", b"ALPH", b"\xff\xff\xff\0"]


def target() -> Target:
    image = picture()
    moving = saved(image, "WEBP", save_all=True, append_images=[image.rotate(90)])
    seeds = [saved(image, "WEBP"), saved(image.convert("RGB"), "WEBP", lossless=True), moving]
    return Target(seeds, source_image, WORDS)
