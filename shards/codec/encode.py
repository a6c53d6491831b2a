"""Any source image as a packed one: a small RGB image over white."""

from __future__ import annotations

import warnings
from functools import partial
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, features
from PIL.ImageFile import ImageFile as Opened

from diffbase.cli import InputError
from shards.codec import KEEP, png
from shards.codec.decode import ImageFile, npy_head
from shards.codec.deep import MODES, PixelFormatError, decoded
from shards.codec.light import FORMATS, NAMES, Light, format_of
from shards.codec.orientation import Picture, orientation, upright
from shards.codec.resample import over_white, resize

PIXEL_CAP = 1 << 26  # pixels of a source image (8192 x 8192): a decompression bomb stops here


def prepare_image(data: bytes, where: str, *, crop: int | None, size: int, encoding: str = "png") -> bytes:
    """One source image file as a packed one: RGB, ``size`` x ``size`` pixels, over white.

    ``crop`` is the edge of the centre crop taken first, None the largest centred square. Raises InputError,
    naming ``where``, for data that is no whole image of a format that is read, or has unfit dimensions or
    pixels.
    """
    return encode_pixels(prepare(decode_source(data, where), where, crop, size), encoding)


def prepare(image: Picture, where: str, crop: int | None, size: int) -> NDArray[np.uint8]:
    """Centre crop, antialiased resize and white ground: uint8 [size, size, 3]."""
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    edge = edge_of(width, height, where, crop)
    left, top = (width - edge) // 2, (height - edge) // 2
    if isinstance(image, Image.Image):
        try:
            whole = image.size == (edge, edge)
            pixels = _colours(image if whole else image.crop((left, top, left + edge, top + edge)))
        except Exception as error:  # Pillow looks at a palette only now
            raise InputError(f"{where}: damaged image ({_reason(error)})") from error
    else:
        pixels = image[top : top + edge, left : left + edge]
    # Over white before the resize: at a silhouette's edge the filter overshoots, and colours and alpha, each
    # cut off at 8 bits, would not add up again afterwards (RMS error 1.5 of 255 instead of 0.3).
    return resize(over_white(pixels) if pixels.shape[2] == 4 else pixels, size)


def edge_of(width: int, height: int, where: str, crop: int | None) -> int:
    """Edge of the square that is taken of an image; InputError, naming ``where``, if it is too small."""
    edge = min(width, height) if crop is None else crop
    if edge > min(width, height):
        raise InputError(f"{where}: {width} x {height} pixels, too small for --crop {edge}")
    return edge


def _colours(square: Image.Image) -> NDArray[np.uint8]:
    """A picture's pixels in RGB or RGBA."""
    if square.mode not in ("RGB", "RGBA"):
        opaque = square.mode in ("L", "CMYK") and "transparency" not in square.info
        square = square.convert("RGB" if opaque else "RGBA")
    elif "transparency" in square.info:
        square = square.convert("RGBA")
    return np.asarray(square)


def kept(data: bytes, where: str, crop: int | None, size: int) -> bytes:
    """``data``, a JPEG that is already what ``prepare`` would make of it but for its encoding.

    InputError, naming ``where``, for any other image, and for one that cannot be decoded.
    """
    name, found = _head(data, where)
    if name != "JPEG":
        raise InputError(f"{where}: a {name}, which is not kept; allowed with --image {KEEP}: JPEG")
    width, height = found.size or (0, 0)
    if (width, height) != (size, size) or edge_of(width, height, where, crop) != size:
        taken = "" if crop in (None, size) else f" without a crop of {crop}"
        raise InputError(
            f"{where}: {width} x {height} pixels; allowed with --image {KEEP}: {size} x {size}{taken}"
        )
    if found.orientation != 1:
        raise InputError(f"{where}: turned by its metadata; allowed with --image {KEEP}: upright ones")
    prepare(decode_source(data, where), where, crop, size)
    return data


def encode_pixels(pixels: NDArray[np.uint8], encoding: str) -> bytes:
    """RGB pixels [H, W, 3] as a file: png, webp (lossless) or npy (raw, as ``np.save`` writes them)."""
    if encoding == "npy":
        return npy_head(*pixels.shape) + pixels.tobytes()
    if encoding == "png":
        return png.encode(pixels)
    stream = BytesIO()
    # A fifth of the default effort's time for 5 % more bytes.
    Image.fromarray(pixels).save(stream, "WEBP", lossless=True, method=1, quality=50)
    return stream.getvalue()


def decode_source(data: bytes, where: str) -> Picture:
    """A source image file, decoded and upright; InputError, naming ``where``, for any other data.

    The dimensions are checked before any pixel is decoded. Of an animation, the first picture is taken.
    Channels of 16 bits are rounded to 8.
    """
    name, found = _head(data, where)
    try:
        if name == "PNG":
            parts = png.parts(data)
            light, turned = png.lightened(data, parts), orientation(parts.exif, parts.xmp)
            if not isinstance(light, bytes):
                return upright(light, turned)
            found = Light(found.size, light, turned)
        with warnings.catch_warnings(action="ignore"):  # of its metadata, with no name of a file
            picture = decoded(partial(_opened, name=name, size=found.size), found.data)
        if name in ("WEBP", "AVIF") and isinstance(picture, Image.Image):
            exif, xmp = (picture.info.get(key, b"") for key in ("exif", "xmp"))
            found = found._replace(orientation=orientation(exif, xmp))
        return upright(picture, found.orientation)
    except PixelFormatError as error:
        raise InputError(f"{where}: pixel format {error}; allowed: {', '.join(MODES)}, 16 bits") from error
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        raise InputError(f"{where}: truncated or damaged {name} ({_reason(error)})") from error


def check_head(data: bytes, where: str) -> tuple[str, int, int]:
    """Format, width and height of an image, by its head; InputError for what no pixel is decoded of."""
    name, found = _head(data, where)
    return name, *(found.size or (0, 0))


def _head(data: bytes, where: str) -> tuple[str, Light]:
    """Format of an image, and the image without its metadata; it has pixels, and not too many."""
    if (name := format_of(data)) is None:
        raise InputError(f"{where}: not a {NAMES} image")
    if name == "AVIF" and not features.check("avif"):
        raise InputError(f"{where}: an AVIF image; Pillow here reads none, its wheels from 11.3 on do")
    try:
        found = FORMATS[name][1](data)
        if name == "AVIF":  # libavif decodes no pixel to tell it
            with warnings.catch_warnings(action="ignore"):
                found = found._replace(size=_opened(found.data, name, None).size)
    except Exception as error:
        raise InputError(f"{where}: truncated or damaged {name} ({_reason(error)})") from error
    width, height = found.size or (0, 0)
    if min(width, height) < 1:
        raise InputError(f"{where}: not a {NAMES} image (it has no pixels)")
    if width * height > PIXEL_CAP:
        raise InputError(f"{where}: {width} x {height} pixels; at most {PIXEL_CAP} in all are allowed")
    return name, found


def _opened(data: bytes, name: str, size: tuple[int, int] | None) -> Opened:
    """An image before its pixels are decoded, of the ``size`` that its head told."""
    if name == "AVIF":
        from PIL import AvifImagePlugin  # older Pillows have none

        AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # the cores have their workers
    image = Image.open(ImageFile(data), formats=(name,))
    if size and image.size != size:  # a file may have a second head
        raise ValueError(f"{image.width} x {image.height} pixels here, {size[0]} x {size[1]} there")
    return image


def _reason(error: Exception) -> str:
    text = str(error)
    # Pillow's "cannot identify image file <... object at 0x...>" tells an address, not a reason.
    return type(error).__name__ if " object at 0x" in text or not text else text
