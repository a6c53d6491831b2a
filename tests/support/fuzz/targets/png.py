"""PNGs among source images, by other programs and by the packer."""

from __future__ import annotations

from tests.support.fuzz import hostile
from tests.support.fuzz.examples import picture, png_of, saved
from tests.support.fuzz.reading import source_image
from tests.support.fuzz.target import Target


def target() -> Target:
    image = picture()
    seeds = [saved(image, "PNG"), png_of(image)]
    seeds += [saved(image.convert(mode), "PNG") for mode in ("RGB", "P", "LA", "1")]
    return Target(seeds, source_image, mutate=hostile.png)
