"""What several tests here share: tiny avatars, their labels, and how to look at a packed folder."""

from __future__ import annotations

import contextlib
import io
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.schema import CARTOON_SET
from shards.table import Index

EDGE = 12  # pixels of an avatar
TINY = ["--size", "4", "--crop", "8", "--jobs", "1"]  # flags that suit the avatars

Command = Callable[..., tuple[int, str, str]]  # the fixture ``command``


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def png_of(key: str) -> bytes:
    """A noisy RGBA avatar that depends on the key alone."""
    return png(np.random.default_rng(list(key.encode())).integers(0, 256, (EDGE, EDGE, 4), np.uint8))


def noisy_pictures(folder: Path, count: int, edge: int) -> Path:
    """A new folder of ``count`` noisy PNGs, of edge x edge pixels; the same each time."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (edge, edge, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def labels_of(key: str) -> dict[str, int]:
    rng = random.Random(key)
    return {a.name: rng.randrange(a.variants) for a in CARTOON_SET}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def keys_of(folder: Path, split: str) -> list[str]:
    table = Index.load(folder).split(split)
    return [table.key(number) for number in range(len(table))]


def row_of(folder: Path, number: int) -> tuple[Path, str, dict[str, int]]:
    """Shard, key and columns of a train sample."""
    split = Index.load(folder).split("train")
    shard = split.shards[split.shard_of(np.array([number]))[0]].name
    row = split.samples[number]
    columns = ("image_offset", "image_bytes", "label_offset", "label_bytes")
    return folder / shard, split.key(number), {name: int(row[name]) for name in columns}


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a count, not paths


def open_in(folder: Path) -> list[str]:
    """The files in ``folder``, deleted ones too, that this process has open."""
    links = []
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            links.append(str(Path(f"/proc/self/fd/{name}").readlink()))
    return sorted(link for link in links if link.startswith(f"{folder}/"))


def resized_in_floats(pixels: NDArray[Any], size: int) -> NDArray[np.float32]:
    """Colours [E, E, 3] through Pillow's antialiased bicubic resize without rounding: [size, size, 3]."""
    bands = [Image.fromarray(np.ascontiguousarray(pixels[..., band], np.float32)) for band in range(3)]
    found = [np.asarray(band.resize((size, size), Image.Resampling.BICUBIC)) for band in bands]
    return np.stack(found, -1).clip(0, 255)
