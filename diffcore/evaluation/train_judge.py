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

from diffbase import cli
from diffbase.cli import InputError
from diffcore.evaluation import flags

EPOCHS = 24


PROG = "python -m diffcore.evaluation.train_judge"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    parser.add_argument("data", help="folder of packed shards, or its URL (then with --out)")
    parser.add_argument("--out", type=Path, help="folder for the judge (default: DATA/judge)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"at most (default {EPOCHS})")
    parser.add_argument("--width", type=int, default=32, help="channels of the first maps (default 32)")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate (default 0.002)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    arguments = parser(prog).parse_args(argv)
    if arguments.epochs < 1 or arguments.width < 8 or not arguments.lr > 0:
        raise InputError("--epochs must be 1 or more, --width 8 or more and --lr above 0")

    import torch

    from diffcore.evaluation.judging import judge, training
    from shards.remote.fetch import is_url

    data: Path | str = arguments.data if is_url(arguments.data) else Path(arguments.data)
    out = arguments.out or judge.folder_of(data)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with cli.answer(arguments) as give:
        net, record = training.train(
            data, epochs=arguments.epochs, width=arguments.width, lr=arguments.lr, seed=arguments.seed
        )
        judge.save(out, net, record)
        training.show(record)
        print(f"judge: {out}")
        give(record)


if __name__ == "__main__":
    cli.run(main)
