"""python -m diffcore.evaluation.seeable DATA [--images 200]

How much of the stand-in avatars can be seen at the size they are packed at, and does the judge see it? For
held-out images every other variant of every attribute is drawn, all else the same: an attribute can be seen
in an image if each of them changes at least 8 pixels by more than 25 of 255. (Brown brows on brown skin
cannot, nor eyes behind dark glasses.) An attribute counts as one that can be seen at that size if that holds
in at least nine images of ten. For stand-in avatars only; writes seeable.json beside the judge.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffbase import cli
from diffbase.cli import InputError
from diffcore.evaluation import command
from shards.schema import CARTOON_SET

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PIXELS, CHANGE = 8, 25
MOST = 0.9


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluation.seeable", __doc__)
    parser.add_argument("data", type=Path, help="folder of packed stand-in avatars")
    parser.add_argument("--images", type=int, default=200, help="held-out images looked at (default 200)")
    parser.add_argument("--judge", type=Path, help="the judge's folder (default: DATA/judge)")
    arguments = parser.parse_args(argv)

    import numpy as np
    from PIL import Image
    from rich.console import Console

    from diffbase.files import write_atomic
    from diffcore.evaluation import judge
    from diffcore.evaluation.intervals import wilson
    from shards.codec.encode import prepare
    from shards.read import ShardReader
    from shards.standin.artwork import avatar
    from shards.standin.visible import visible
    from shards.table import Index

    index = Index.load(arguments.data)
    if index.schema != CARTOON_SET:
        raise InputError(f"{arguments.data}: not avatars")
    folder = arguments.judge or judge.folder_of(arguments.data)
    trained = judge.load(folder, index)
    with ShardReader(arguments.data, "val", order="sequential") as reader:
        real = reader.read(np.arange(len(reader)))
    few = min(arguments.images, len(real.images))
    crop, size = index.header.preprocessing.crop, index.size

    def look_of(labels: dict[str, int]) -> NDArray[np.int64]:
        pixels = prepare(Image.fromarray(avatar.render(labels)), "avatar", crop, size)
        return pixels.astype(np.int64)

    changed_NA = np.zeros((few, len(CARTOON_SET)), np.int64)
    with cli.progress_bar("looking") as report:
        for i in range(few):
            labels = {a.name: int(v) for a, v in zip(CARTOON_SET, real.labels[i], strict=True)}
            own = look_of(labels)
            if np.abs(own - real.images[i]).max() > 2:
                raise InputError(f"{arguments.data}: not this version's stand-in avatars, packed as they are")
            for column, a in enumerate(CARTOON_SET):
                others = (v for v in range(a.variants) if v != labels[a.name])
                changed_NA[i, column] = min(
                    int((np.abs(look_of(labels | {a.name: v}) - own).max(-1) > CHANGE).sum()) for v in others
                )
            report(i + 1, few)
    seen_NA = (changed_NA >= PIXELS) & visible(CARTOON_SET, real.labels[:few])
    hit_NA = trained.read(real.images).labels_NA == real.labels
    shares = trained.score(real.images, real.labels).shares

    headings = ("attribute", "images that show it", "judge, all images", "judge, images that show it")
    table = command.table(f"{arguments.data}: what can be seen at {size} x {size}", *headings)
    record = {}
    for column, a in enumerate(CARTOON_SET):
        possible = visible(CARTOON_SET, real.labels[:few])[:, column]
        seen = seen_NA[:, column]
        judged = wilson(int(hit_NA[:few, column][seen].sum()), int(seen.sum()))
        record[a.name] = {
            "shown": float(seen.sum() / possible.sum()),
            "judge": shares[a.name].as_dict(),
            "judge_where_shown": judged.as_dict(),
        }
        table.add_row(
            a.name, f"{record[a.name]['shown']:.0%}", f"{shares[a.name].share:.1%}",
            f"{judged.share:.1%} of {judged.count}",
        )  # fmt: skip
    able = [name for name, row in record.items() if row["shown"] >= MOST]
    over_able = float(np.mean([shares[name].share for name in able]))
    over_all = float(np.mean([row["judge_where_shown"]["share"] for row in record.values()]))
    write_atomic(
        folder / "seeable.json",
        (
            json.dumps({"images": few, "seeable": able, "mean": over_able, "attributes": record}) + "\n"
        ).encode(),
    )
    Console().print(table)
    print(
        f"can be seen at this size: {', '.join(able)}; the judge's mean over them {over_able:.2%} of "
        f"{len(real.images)} images. Over all {len(record)} attributes, where they show, {over_all:.2%}."
    )


if __name__ == "__main__":
    cli.run(main)
