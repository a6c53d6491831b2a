"""Any source image as a packed one: a small RGB image over white."""

from __future__ import annotations

import warnings
from io import BytesIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from diffbase.cli import InputError
from shards.codec import png
from shards.codec.decode import ImageFile, jpeg_size, npy_head, webp_size
from shards.codec.resample import over_white, resize

PIXEL_CAP = 1 << 26  # pixels of a source image (8192 x 8192): a decompression bomb stops here
# What Pillow gives for images of up to 8 bits per channel.
Picture = Image.Image | NDArray[np.uint8]  # as Pillow has it, or pixels [H, W, 3 or 4], RGB or RGBA
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK")


def prepare_image(data: bytes, where: str, *, crop: int | None, size: int, encoding: str = "png") -> bytes:
    """One source image file as a packed one: RGB, ``size`` x ``size`` pixels, over white.

    ``crop`` is the edge of the centre crop taken first, None the largest centred square. Raises InputError,
    naming ``where``, for data that is no whole PNG, JPEG or WebP, has unfit dimensions or more than 8 bits
    per channel.
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
    """
    name, *dimensions = check_head(data, where)
    light = png.lightened(data) if name == "PNG" else data
    if not isinstance(light, bytes):
        return light
    try:
        with warnings.catch_warnings(action="ignore"):  # of its metadata, with no name of a file
            if name == "PNG" and light is data:
                # Decoding alone would let a cut end or a wrong checksum pass; verify() leaves it unusable.
                Image.open(ImageFile(data), formats=(name,)).verify()
            image: Image.Image = Image.open(ImageFile(light), formats=(name,))
            if image.size != tuple(dimensions):  # a file may have a second head
                raise ValueError(
                    f"{image.width} x {image.height} pixels here, {' x '.join(map(str, dimensions))} there"
                )
            image.load()
            if name != "PNG":  # a photo that was taken with the camera on its side
                image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        raise InputError(f"{where}: truncated or damaged {name} ({_reason(error)})") from error
    if image.mode not in MODES:
        raise InputError(f"{where}: pixel format {image.mode}; allowed: {', '.join(MODES)}")
    return image


def check_head(data: bytes, where: str) -> tuple[str, int, int]:
    """Format, width and height of an image, by its head; InputError for what no pixel is decoded of."""
    name, dimensions = _head(data)
    if dimensions is None or 0 in dimensions:
        raise InputError(f"{where}: not a PNG, JPEG or WebP image")
    width, height = dimensions
    if width * height > PIXEL_CAP:
        raise InputError(f"{where}: {width} x {height} pixels; at most {PIXEL_CAP} in all are allowed")
    return name, width, height


def _head(data: bytes) -> tuple[str, tuple[int, int] | None]:
    """Format and dimensions, in pixels, of an image; the dimensions are None where it is none of ours."""
    if data[:3] == b"\xff\xd8\xff":
        return "JPEG", jpeg_size(data)
    if data[:4] == b"RIFF":
        return "WEBP", webp_size(data)
    return "PNG", png.size_of(data)


def _reason(error: Exception) -> str:
    text = str(error)
    # Pillow's "cannot identify image file <... object at 0x...>" tells an address, not a reason.
    return type(error).__name__ if " object at 0x" in text or not text else text
