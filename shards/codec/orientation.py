"""How a picture stands: the orientation in its Exif or XMP data, and the picture turned upright.

By hand: of metadata nothing else is read, however much there is of it and whatever is wrong with it.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = Image.Image | NDArray[np.uint8]  # as Pillow has it, or pixels [H, W, 3 or 4], RGB or RGBA

TAG = 0x0112  # of TIFF
# Before Exif data, or not, or twice. Cut off at once: one by one, millions of them take minutes.
HEADS = re.compile(rb"(?:Exif\0\0)*+")
XMP = re.compile(rb'tiff:Orientation(="|>)([0-9])')
# By a TIFF's first bytes: byte order, the bytes of its head, and the types of a directory's count and of an
# entry: tag, type, number of values, and these or where they are.
FORMS = {
    b"II*\0": ("<", 4, "H", "HHI4s"),
    b"MM\0*": (">", 4, "H", "HHI4s"),
    b"II+\0": ("<", 8, "Q", "HHQ8s"),
    b"MM\0+": (">", 8, "Q", "HHQ8s"),
}
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of the types
# By orientation: what Pillow does, and the same as an order of axes and directions of the rows and columns.
Turn = Image.Transpose
TURNS = {
    2: (Turn.FLIP_LEFT_RIGHT, (0, 1), 1, -1),
    3: (Turn.ROTATE_180, (0, 1), -1, -1),
    4: (Turn.FLIP_TOP_BOTTOM, (0, 1), -1, 1),
    5: (Turn.TRANSPOSE, (1, 0), 1, 1),
    6: (Turn.ROTATE_270, (1, 0), 1, -1),
    7: (Turn.TRANSVERSE, (1, 0), -1, -1),
    8: (Turn.ROTATE_90, (1, 0), -1, 1),
}


class Entry(NamedTuple):
    """An entry of a TIFF's directory as it stands there."""

    tag: int
    type: int
    number: int
    value: bytes


class Directory:
    """The first directory of a TIFF, or of Exif data, which is one. ValueError for what is none."""

    def __init__(self, data: bytes) -> None:
        """Read the entries that are there; one that stands twice counts as it stands last."""
        if data[:4] not in FORMS:
            raise ValueError("no directory")
        self.order, self.head, count, entry = FORMS[data[:4]]
        self.entry = struct.Struct(self.order + entry)
        at = int.from_bytes(data[self.head : 2 * self.head], "little" if self.order == "<" else "big")
        start = at + struct.calcsize(count)
        if not self.head <= at <= len(data) - struct.calcsize(count):
            raise ValueError("its directory lies outside")
        (number,) = struct.unpack(self.order + count, data[at:start])
        size = min(number, (len(data) - start) // self.entry.size, 65535) * self.entry.size
        found = self.entry.iter_unpack(data[start : start + size])
        self.entries = {entry.tag: entry for entry in map(Entry._make, found)}

    def integer(self, tag: int, default: int = 0) -> int:
        """The first value of an entry, where it stands in the entry itself; else ``default``."""
        entry = self.entries.get(tag)
        kind = INTEGERS.get(entry.type) if entry else None
        if entry is None or kind is None or not 0 < entry.number * struct.calcsize(kind) <= len(entry.value):
            return default
        return int(struct.unpack_from(self.order + kind, entry.value)[0])


def orientation(exif: bytes, xmp: bytes = b"") -> int:
    """The orientation, 1 to 8, that Exif data tell, else XMP's; 1, which is upright, where neither does."""
    try:
        told = Directory(HEADS.sub(b"", exif, count=1))
    except ValueError:
        found = 0
    else:
        found = told.integer(TAG)
    if not found and (match := XMP.search(xmp)):
        found = int(match[2])
    return found if found in TURNS else 1


def upright(picture: Picture, orientation: int) -> Picture:
    """The picture as it was seen, where its rows and columns stand in this ``orientation``."""
    if orientation not in TURNS:
        return picture
    method, axes, down, right = TURNS[orientation]
    if isinstance(picture, Image.Image):
        return picture.transpose(method)
    return picture.transpose(*axes, 2)[::down, ::right]
