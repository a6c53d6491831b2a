"""A packed set of random pictures with Cartoon Set labels, for runs of which only time and order count."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from shards import pack
from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import format_csv


def pictures(folder: Path, count: int, size: int) -> Path:
    """``count`` pictures of one colour, ``size`` pixels wide, and their labels; the same every time."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for i in range(count):
        labels = {a.name: int(random.integers(a.variants)) for a in CARTOON_SET}
        rgba_HWC = np.full((size, size, 4), 255, np.uint8)
        rgba_HWC[..., :3] = random.integers(0, 256, 3, np.uint8)
        Image.fromarray(rgba_HWC).save(folder / f"cs{i}.png")
        (folder / f"cs{i}.csv").write_text(format_csv(labels))
    return folder


def packed(folder: Path, count: int = 96, size: int = 16) -> Path:
    """``pictures`` packed at ``size`` pixels, a tenth of them for validation."""
    source = pictures(folder / "source", count, 2 * size)
    out = folder / "shards"
    # fmt: off
    options = ["--size", str(size), "--crop", str(2 * size), "--jobs", "1", "--val", "0.1"]
    # fmt: on
    with contextlib.redirect_stdout(sys.stderr):
        pack.main([str(source), "--out", str(out), *options])
    return out
