"""Source images by their bytes: what they are, how large, and the same without all that makes no pixel.

Metadata may be of any size and damaged: comments, profiles, thumbnails and other frames never reach a
library. What does has at most ``PARTS`` parts. Whatever is too short or no such file raises ValueError.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from shards.codec import png
from shards.codec.decode import webp_size
from shards.codec.orientation import TAG, Directory, orientation

PARTS = 1 << 18  # of a file: a GIF of 32 MiB has half as many
SEGMENTS_CAP = 1 << 16  # before a JPEG's pixels
XMP = b"http://ns.adobe.com/xap/1.0/\0"
JPEG_KEPT = (0xE0, 0xEE)  # JFIF's and Adobe's, which tell what the channels are
# Of a TIFF: layout, format and compression of the pixels, and the palette.
TIFF_KEPT = frozenset(
    [
        *(256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
        *(332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
    ]
)
TIFF_BYTES = [0, 1, 1, 2, 4, 8, 1, 1, 2, 4, 8, 4, 8, 4, 0, 0, 8, 8, 8]  # of a value, by its type
TIFF_VALUES = 1 << 19  # bytes of one entry's
# Exif and XMP of an AVIF, of which Pillow reads all; how it stands its own boxes tell.
# Looked for backwards from the kind, so that nothing hides a part by looking like the beginning of another.
AVIF_METADATA = re.compile(rb"(?:Exif|mime)(?:(?<=infe[\2\3].{11})|(?<=infe[\2\3].{13}))", re.DOTALL)


GIF_BLOCK = re.compile(rb"[!,;]")  # an extension, a picture, the end


class Light(NamedTuple):
    """A file without metadata. ``size``: width and height, pixels; None where a library reads them."""

    size: tuple[int, int] | None
    data: bytes
    orientation: int = 1


def jpeg(data: bytes) -> Light:
    """By hand: Pillow warns of large pictures, or refuses to open them, before it tells their size."""
    at, start, parts, size, exif, xmp = 2, 0, [], None, b"", b""
    for _ in range(SEGMENTS_CAP):
        if at + 4 > len(data):
            break
        kind = data[at + 1]
        if data[at] != 0xFF:  # some cameras leave a few bytes between the segments
            at = data.find(b"\xff", at) % (len(data) + 1)
            continue
        if kind == 0xFF:  # a byte to fill up
            at += 1
            continue
        if kind in (0xD9, 0xDA):  # the end, or pixels
            break
        length = int.from_bytes(data[at + 2 : at + 4], "big")
        end = at + 2 + max(length, 2) * (kind != 0x01 and not 0xD0 <= kind <= 0xD8)
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC) and at + 9 <= len(data):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            size = size or (width, height)
        elif 0xE0 <= kind <= 0xEF or kind == 0xFE:
            content = data[at + 4 : end]
            if kind == 0xE1 and content.startswith(b"Exif\0"):
                exif = exif or content
            elif kind == 0xE1 and content.startswith(XMP):
                xmp = xmp or content
            if kind not in JPEG_KEPT:
                parts.append(data[start:at])
                start = end
        at = end
    else:
        raise ValueError("too many parts")
    if size is None:
        raise ValueError("no frame")
    return Light(size, b"".join([*parts, data[start:]]) if parts else data, orientation(exif, xmp))


def gif(data: bytes) -> Light:
    """The first picture and what tells of its colours."""

    left, control = PARTS, b""

    def block(at: int) -> int:  # the next one: between two, some programs leave a byte
        found = GIF_BLOCK.search(data, at)
        return found.start() if found else len(data)

    def table(flags: int) -> int:  # of colours, bytes
        return 3 * (2 << (flags & 7)) if flags & 0x80 else 0

    def behind(at: int) -> int:  # the blocks that begin there
        nonlocal left
        while size := data[at]:
            at += size + 1
            left -= 1
            if left < 0:
                raise ValueError("too many parts")
        return at + 1

    try:
        width, height, flags = struct.unpack_from("<HHB", data, 6)
        start = 13 + table(flags)
        at = block(start)
        while data[at] == 0x21:  # an extension
            end = behind(at + 2)
            left -= 1
            control = data[at:end] if data[at + 1] == 0xF9 else control
            at = block(end)
        if data[at] != 0x2C:
            raise ValueError("no picture")
        x, y, across, down, flags = struct.unpack_from("<HHHHB", data, at + 1)
        end = behind(at + 11 + table(flags))
    except (IndexError, struct.error) as error:
        raise ValueError("too short") from error
    size = (max(width, x + across), max(height, y + down))  # where it does not fit, there is more room
    return Light(size, b"%b%b%b;" % (data[:start], control, data[at:end]))


def bmp(data: bytes) -> Light:
    """Of any version."""
    form = "<HH" if data[14:18] == b"\x0c\0\0\0" else "<ii"
    try:
        width, height = struct.unpack_from(form, data, 18)
    except struct.error as error:
        raise ValueError("too short") from error
    return Light((width, abs(height)), data)  # from the top down, where it is negative


def tiff(data: bytes) -> Light:
    """The first picture: a new directory behind everything else has only what tells of its pixels."""
    old = Directory(data)
    kept = [old.entries[tag] for tag in sorted(TIFF_KEPT & old.entries.keys())]
    for entry in kept:
        if entry.number * (TIFF_BYTES[entry.type] if entry.type < len(TIFF_BYTES) else 8) > TIFF_VALUES:
            raise ValueError("too many parts")
    width, height = old.integer(256), old.integer(257)
    planes = old.integer(277, 1) if old.integer(284, 1) == 2 else 1
    for offsets, across, down in (
        (273, width, old.integer(278, height)),
        (324, old.integer(322), old.integer(323)),
    ):
        if offsets in old.entries:
            rows, columns = -(-height // max(down, 1)), -(-width // max(across, 1))
            if old.entries[offsets].number > rows * columns * planes:  # a library may decode them all
                raise ValueError("too many parts")
    at = len(data) + len(data) % 2
    count, place = ("Q", "Q") if old.head == 8 else ("H", "I")
    new = struct.pack(old.order + count, len(kept)) + b"".join(old.entry.pack(*entry) for entry in kept)
    head = data[: old.head] + struct.pack(old.order + place, at)
    turned = old.integer(TAG)
    return Light(
        (width, height), b"%b%b%b%b" % (head, data[len(head) :].ljust(at - len(head)), new, bytes(8)), turned
    )


def avif(data: bytes) -> Light:
    """Its size libavif reads, which decodes no pixel for it."""
    return Light(None, AVIF_METADATA.sub(b"free", data))


def _png(data: bytes) -> Light:
    return Light(png.size_of(data), data)  # what there is to leave out is left out where it is inflated


def _webp(data: bytes) -> Light:
    return Light(webp_size(data), data)  # Pillow looks at its metadata only where it is asked to


# By Pillow's name of each format: how a file begins, and what is known of it.
FORMATS: dict[str, tuple[re.Pattern[bytes], Callable[[bytes], Light]]] = {
    "PNG": (re.compile(re.escape(png.SIGNATURE)), _png),
    "JPEG": (re.compile(rb"\xff\xd8\xff"), jpeg),
    "WEBP": (re.compile(rb"RIFF....WEBP", re.DOTALL), _webp),
    "GIF": (re.compile(rb"GIF8[79]a"), gif),
    "TIFF": (re.compile(rb"II[*+]\0|MM\0[*+]"), tiff),
    "AVIF": (re.compile(rb"\0\0..ftyp(?:....){0,32}?avi[fs]", re.DOTALL), avif),
    "BMP": (re.compile(rb"BM.{12}[\x0c-\x80]\0\0\0", re.DOTALL), bmp),
}
NAMES = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"


def format_of(data: bytes) -> str | None:
    """Pillow's name of an image's format, by its first bytes; None for data of no such format."""
    return next((name for name, (begins, _) in FORMATS.items() if begins.match(data)), None)
