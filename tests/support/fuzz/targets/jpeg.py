"""JPEGs among source images."""

from __future__ import annotations

from PIL import Image

from tests.support.fuzz.examples import picture, saved
from tests.support.fuzz.reading import source_image
from tests.support.fuzz.target import Target

WORDS = [
    b"\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03",
    b"\xff\xd8",
    b"\xff\xd9",
    b"\xff\xda",
    b"\xff\xe1\x00\x08Exif\0\0",
]


def target() -> Target:
    image = picture().convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    seeds = [
        saved(image, "JPEG", exif=exif),
        saved(image.convert("CMYK"), "JPEG"),
        saved(image, "JPEG", progressive=True),
    ]
    return Target(seeds, source_image, WORDS)
