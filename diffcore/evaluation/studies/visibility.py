"""What of the stand-in avatars can be seen at the size that they are packed at, and does the judge see it?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable, write_json
from diffcore.evaluation.judging import judge
from diffcore.evaluation.judging.intervals import wilson
from shards.codec.encode import prepare
from shards.read import ShardReader
from shards.schema import CARTOON_SET, UNKNOWN
from shards.standin.artwork import avatar
from shards.standin.visible import visible
from shards.table import Index

PIXELS, CHANGE = 8, 25
"""An attribute shows if every other variant changes this many pixels by more than this, of 255."""
MOST = 0.9
"""It can be seen at a size if it shows in this share of the images."""


@dataclass(frozen=True)
class Visibility:
    """What was found, by attribute, and the judge's mean over what can be seen and over all that shows."""

    size: int
    images: int
    attributes: dict[str, dict[str, Any]]
    able: list[str]
    over_able: float
    over_all: float


def measure(data: Path, folder: Path | None, images: int) -> Visibility:
    """Look at held-out images; also written to seeable.json beside the judge. InputError for other data."""
    index = Index.load(data)
    if index.schema != CARTOON_SET:
        raise InputError(f"{data}: not avatars")
    folder = folder or judge.folder_of(data)
    trained = judge.load(folder, index)
    check_writable(folder)
    with ShardReader(data, "val", order="sequential") as reader:
        real = reader.read(np.arange(len(reader)))
    if (real.labels == UNKNOWN).any():
        raise InputError(f"{data}: some labels are unknown, so the avatars cannot be drawn with others")
    few = min(images, len(real.images))
    possible_NA = visible(CARTOON_SET, real.labels[:few])
    seen_NA = (_least_changes(data, index, real.images[:few], real.labels) >= PIXELS) & possible_NA
    hit_NA = trained.read(real.images).labels_NA == real.labels
    shares = trained.score(real.images, real.labels).shares
    record: dict[str, dict[str, Any]] = {}
    for column, a in enumerate(CARTOON_SET):
        seen = seen_NA[:, column]
        judged = wilson(int(hit_NA[:few, column][seen].sum()), int(seen.sum()))
        record[a.name] = {
            "shown": float(seen.sum() / possible_NA[:, column].sum()),
            "judge": shares[a.name].as_dict(),
            "judge_where_shown": judged.as_dict(),
        }
    able = [name for name, row in record.items() if float(row["shown"]) >= MOST]
    over_able = float(np.mean([shares[name].share for name in able]))
    over_all = float(np.mean([row["judge_where_shown"]["share"] for row in record.values()]))
    tree = {"images": few, "seeable": able, "mean": over_able, "attributes": record}
    write_json(folder / "seeable.json", tree, indent=None)
    return Visibility(index.size, len(real.images), record, able, over_able, over_all)


def _least_changes(
    data: Path, index: Index, real_NHWC: NDArray[np.uint8], labels_NA: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Pixels that the least other variant of each attribute changes in each image: [N, A]."""
    crop, size = index.header.preprocessing.crop, index.size

    def look_of(labels: dict[str, int]) -> NDArray[np.int64]:
        pixels = prepare(Image.fromarray(avatar.render(labels)), "avatar", crop, size)
        return pixels.astype(np.int64)

    changed_NA = np.zeros((len(real_NHWC), len(CARTOON_SET)), np.int64)
    with cli.progress_bar("looking") as report:
        for i, real_HWC in enumerate(real_NHWC):
            labels = {a.name: int(v) for a, v in zip(CARTOON_SET, labels_NA[i], strict=True)}
            own = look_of(labels)
            if np.abs(own - real_HWC).max() > 2:
                raise InputError(f"{data}: not this version's stand-in avatars, packed as they are")
            for column, a in enumerate(CARTOON_SET):
                others = (v for v in range(a.variants) if v != labels[a.name])
                changed_NA[i, column] = min(
                    int((np.abs(look_of(labels | {a.name: v}) - own).max(-1) > CHANGE).sum()) for v in others
                )
            report(i + 1, len(real_NHWC))
    return changed_NA
