"""Small whole files of the kinds that shards reads: what the targets damage."""

from __future__ import annotations

import io
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.codec import png
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import format_csv
from shards.sources.cifar import CLASSES

CSV = format_csv({a.name: a.variants - 1 for a in CARTOON_SET}).encode()


def picture() -> Image.Image:
    """A smooth one of 24 x 20 pixels with alpha."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 4), np.uint8)
    return Image.fromarray(noise).resize((24, 20))


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    """An image as a file."""
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def png_of(image: Image.Image) -> bytes:
    """A PNG as the packer writes it."""
    return png.encode(np.asarray(image))


def pixels() -> NDArray[np.uint8]:
    """The picture in RGB: uint8 [20, 24, 3]."""
    return np.asarray(picture().convert("RGB"))


def tar(files: Iterable[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, **pax: str) -> bytes:
    """A tar file; each member has the PAX records ``pax``."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = len(data), pax
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def cartoons(folder: str = "s") -> list[tuple[str, bytes]]:
    """Two avatars of Cartoon Set, each an image and a CSV."""
    image = saved(picture(), "PNG")
    return [(f"{folder}/cs{n}.{end}", data) for n in (1, 2) for end, data in (("png", image), ("csv", CSV))]


def images(folder: str = "s/") -> list[tuple[str, bytes]]:
    """Class folders of two images, with a hidden file."""
    image = saved(picture(), "PNG")
    names = ("ant/1.png", "bee/a b.png", "bee/.thumb")
    return [(f"{folder}{name}", image if name.endswith("png") else b"x") for name in names]


def tabled() -> list[tuple[str, bytes]]:
    """Two images with a table of labels."""
    table = b"file_name,pet,age\n1.png,cat,3\n2.png,dog,\n"
    image = saved(picture(), "PNG")
    return [("1.png", image), ("2.png", image), ("metadata.csv", table)]


def zipped(files: Iterable[tuple[str, bytes]], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip file."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, data in files:
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return stream.getvalue()


def cifar() -> bytes:
    """CIFAR-10's archive with one record a batch."""
    record = bytes([3]) + np.random.default_rng(0).bytes(3072)
    batches = [(f"b/data_batch_{n}.bin", record) for n in range(1, 6)]
    return tar([("b/batches.meta.txt", "\n".join(CLASSES).encode()), *batches])


@cache
def packed() -> dict[str, bytes]:
    """A packed folder of sixteen images in two classes, by the files' names."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        source = Path(name) / "source"
        for group in ("ant", "bee"):
            (source / group).mkdir(parents=True)
            for number in range(8):
                image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                image.save(source / group / f"{number}.png")
        pack(source, Path(name) / "out", Settings(size=4, val=0.0, shard_size=8))
        return {path.name: path.read_bytes() for path in (Path(name) / "out").iterdir()}
