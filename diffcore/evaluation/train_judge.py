"""python -m diffcore.evaluation.train_judge DATA [--out DATA/judge]

Trains the judge of packed shards: a classifier with one head per attribute, on the real images of the
training split only. The best state on the validation split is kept, and training ends when that no longer
improves.
Works for any label schema: several attributes or one class. ``judge.json`` holds its accuracy and confusion
on the validation split, and the fingerprint of the shards that it is for.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diffbase import cli
from diffbase.cli import InputError
from diffbase.tables import TextTable
from diffcore.evaluation import flags

EPOCHS = 24


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = flags.parser("diffcore.evaluation.train_judge", __doc__)
    parser.add_argument("data", help="folder of packed shards, or its URL (then with --out)")
    parser.add_argument("--out", type=Path, help="folder for the judge (default: DATA/judge)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"at most (default {EPOCHS})")
    parser.add_argument("--width", type=int, default=32, help="channels of the first maps (default 32)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default 0.002)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    arguments = parser.parse_args(argv)
    if arguments.epochs < 1 or arguments.width < 8 or not arguments.lr > 0:
        raise InputError("--epochs must be 1 or more, --width 8 or more and --lr above 0")

    import torch

    from diffcore.evaluation.judging import judge
    from diffcore.evaluation.judging.training import train
    from shards.remote.fetch import is_url

    data: Path | str = arguments.data if is_url(arguments.data) else Path(arguments.data)
    out = arguments.out or judge.folder_of(data)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    net, record = train(
        data, epochs=arguments.epochs, width=arguments.width, lr=arguments.lr, seed=arguments.seed
    )
    judge.save(out, net, record)
    show(record)
    print(f"judge: {out}")


def show(record: dict[str, Any]) -> None:
    """The judge's accuracy as a table."""
    title = f"The judge on {record['validated_on']} held-out images"
    table = TextTable(title, "attribute", "right", "95 % interval", "chance", "counts for the mean")
    for attribute in record["schema"]:
        row = record["accuracy"][attribute["name"]]
        table.add_row(
            attribute["name"],
            f"{row['share']:.1%}",
            f"{row['low']:.1%} to {row['high']:.1%}",
            f"{1 / attribute['variants']:.1%}",
            "yes" if attribute["name"] in record["readable"] else "no",
        )
    table.print()
    print(
        f"mean over all attributes {record['mean']['mean']:.2%}, {record['trained_on']:,} images seen, "
        f"{record['seconds']:.0f} s"
    )


if __name__ == "__main__":
    cli.run(main)
