"""GIFs, BMPs, TIFFs and AVIFs among source images, and pictures of 16 bits a channel."""

from __future__ import annotations

import numpy as np

from tests.support.fuzz.examples import picture, pixels, saved
from tests.support.fuzz.reading import source_image
from tests.support.fuzz.target import Target
from tests.support.image_files import png_file, tiff_file

WORDS = [
    b"\x21\xf9\4",
    b"\x2c",
    b"ispe",
    b"infe",
    b"Exif",
    b"av1C",
    b"II*\0",
    b"MM\0*",
    b"\1\3\0\1",
    b"\0\2\xff\xff",
]


def target() -> Target:
    image, colours = picture(), picture().convert("RGB")
    deep = pixels().astype(np.uint16) * 257
    moving = saved(colours, "GIF", save_all=True, append_images=[colours.rotate(90)], comment=b"c" * 300)
    seeds = [moving, saved(image, "GIF"), saved(colours, "BMP"), saved(colours.convert("P"), "BMP")]
    seeds += [saved(image, "TIFF"), saved(colours, "TIFF", compression="tiff_lzw", big_tiff=True)]
    seeds += [
        saved(colours, "TIFF", compression="jpeg"),
        tiff_file(deep),
        tiff_file(deep, ">", deflated=True),
    ]
    seeds += [saved(image, "AVIF"), png_file(deep, 16, 2, filters=[0, 1, 2, 3, 4], interlaced=True)]
    return Target(seeds, source_image, WORDS)
