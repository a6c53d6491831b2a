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
from diffbase.files import check_writable
from diffbase.line import say
from diffcore.evaluation import flags

EPOCHS, LR = 10, 3e-3


PROG = "python -m diffcore.evaluation.train_judge"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    parser.add_argument("data", help="folder of packed shards, or its URL (then with --out)")
    parser.add_argument("--out", type=Path, help="folder for the judge (default: DATA/judge)")
    parser.add_argument("--epochs", type=cli.between(1), default=EPOCHS, help=f"at most (default {EPOCHS})")
    parser.add_argument(
        "--width", type=cli.between(8, 4096), default=24, help="channels of the first maps (default 24)"
    )
    parser.add_argument("--lr", type=float, default=LR, help=f"peak learning rate (default {LR})")
    parser.add_argument("--seed", type=cli.between(0), default=0)
    kept = "what becomes of corrupt samples, as data.on_error of a run (default raise)"
    parser.add_argument("--on-error", choices=("raise", "replace"), default="raise", help=kept)
    over = "attributes that the headline is over, A,B (default: the data set's own, or all)"
    parser.add_argument("--headline", help=over)
    parser.add_argument("--threads", type=cli.between(1, 1024), help="CPU threads (default: torch's)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    arguments = parser(prog).parse_args(argv)
    if not 0 < arguments.lr <= 1e3:
        raise InputError(f"--lr {arguments.lr}: allowed are numbers above 0, up to 1000")

    import torch

    from diffcore.evaluation.judging import judge, training
    from shards.remote.fetch import is_url

    data: Path | str = arguments.data if is_url(arguments.data) else Path(arguments.data)
    out = arguments.out or judge.folder_of(data, "--out FOLDER")
    check_writable(out)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    with cli.answer(arguments, survive=True) as give:
        net, record = training.train(
            data,
            epochs=arguments.epochs,
            width=arguments.width,
            lr=arguments.lr,
            seed=arguments.seed,
            on_error=arguments.on_error,
            headline=arguments.headline,
        )
        judge.save(out, net, record)
        training.show(record)
        say(f"judge: {out}")
        give(record)


if __name__ == "__main__":
    cli.run(main)
