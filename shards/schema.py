"""Label schemas: categorical attributes and their one-hot form; Cartoon Set's own.

Facts: Google's Cartoon Set (CC BY 4.0), https://google.github.io/cartoonset/. This module imports neither
torch nor numpy, so that command lines and config checks stay fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
"""By which files are taken for images; what they are, their bytes tell (``shards.codec.encode``)."""

# What an index may tell, and a pack therefore make.
SIZE_CAP = 4096  # pixels, edge of a packed image and of its crop
SHARD_SIZE_CAP = 1_000_000  # samples of a shard
ATTRIBUTES_CAP = 256
VARIANTS_CAP = 65_536  # of one attribute, and of all together
LABELS_CAP = 1 << 20  # bytes of one label member
NAME_CAP = 255  # characters of an attribute's or a variant's name

INDEX, FORMAT = "index.json", "diffcore-shards"
"""An index's file, and what it says that it is; all else of it: shards.header."""
UNKNOWN = -1
"""In the place of a variant: nobody told it. To a network it is what a dropped label is."""


@dataclass(frozen=True)
class Attribute:
    """One categorical label: its name and the number of its variants (values 0 .. variants - 1).

    ``names`` are the variants' own, one for each, or none. They are for people: two schemas that differ in
    them alone are equal.
    """

    name: str
    variants: int
    names: tuple[str, ...] = field(default=(), compare=False)

    def said(self, variant: int) -> str:
        """A variant as people read it: its name, or its number where it has none."""
        return "unknown" if variant == UNKNOWN else self.names[variant] if self.names else str(variant)


CARTOON_SET: tuple[Attribute, ...] = (
    Attribute("eye_angle", 3),
    Attribute("eye_lashes", 2),
    Attribute("eye_lid", 2),
    Attribute("chin_length", 3),
    Attribute("eyebrow_weight", 2),
    Attribute("eyebrow_shape", 14),
    Attribute("eyebrow_thickness", 4),
    Attribute("face_shape", 7),
    Attribute("facial_hair", 15),
    Attribute("hair", 111),
    Attribute("eye_color", 5),
    Attribute("face_color", 11),
    Attribute("hair_color", 10),
    Attribute("glasses", 12),
    Attribute("glasses_color", 7),
    Attribute("eye_slant", 3),
    Attribute("eyebrow_width", 3),
    Attribute("eye_eyebrow_distance", 3),
)


def one_hot_width(schema: Sequence[Attribute]) -> int:
    """Width of the concatenated one-hot vector; 217 for Cartoon Set."""
    return sum(attribute.variants for attribute in schema)


def one_hot_offsets(schema: Sequence[Attribute]) -> list[int]:
    """First column of each attribute in the concatenated one-hot vector."""
    offsets, total = [], 0
    for attribute in schema:
        offsets.append(total)
        total += attribute.variants
    return offsets
