"""fit: what fits a card, fastest first, with the command line; turned round, what it takes to fit."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffcore.memory.commands import flags
from diffcore.memory.commands.flags import CARD, card, outside, settings

PROG = "python -m diffcore.memory fit"


def nodes(text: str) -> tuple[int, int]:
    """``2`` -> (2, 2), ``1-4`` -> (1, 4); argparse's error for anything else."""
    match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", text)
    low, high = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 1 <= low <= high:
        raise argparse.ArgumentTypeError(f"{text!r:.60}: allowed are a number of nodes, or a range as 1-4")
    return low, high


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags; others override the config, and what they give stays."""
    words = "What fits a card, fastest first. Settings that are given stay; the others are chosen."
    parser = flags.parser(prog, words, ranks=("--world", "--gpus"))
    add = parser.add_argument
    add("--gpu", type=card, help=CARD)
    add("--nodes", type=nodes, metavar="N", help="instead of --gpus: nodes, or a range of them, 1-4")
    add("--gpus-per-node", type=cli.between(1, 64), default=8, metavar="N", help="of these nodes (8)")
    add("--network", type=float, metavar="GB/s", help="that a node sends to others (25)")
    turned = (
        "turned round: the smallest card, the fewest GPUs, the largest batch, the longest side of an image"
    )
    add("--find", choices=["card", "gpus", "batch", "side"], help=turned)
    add("--from", type=Path, dest="run", metavar="RUN", help="times as this run's steps took, on a GPU")
    add("--mfu", type=float, metavar="X", help="share of the card's peak that is reached (0.18)")
    add("--top", type=cli.between(1, 100), default=6, metavar="N", help="rows of the table (6)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print what fits, or what it takes to fit, and the command line for it."""
    given, config = settings(parser(prog), argv)
    if (given.gpu is None) != (given.find == "card"):
        raise InputError(
            "--find card looks for the card: leave --gpu out" if given.gpu else f"--gpu is missing: {CARD}"
        )
    if given.find == "card" and given.calibration:
        raise InputError("--find card takes each card's own calibration: leave --calibration out")
    if given.find == "gpus" and (given.world > 1 or given.nodes):
        raise InputError("--find gpus looks for their number: leave --gpus and --nodes out")
    if given.left_aside:  # no command line that is printed could leave it aside
        raise InputError(
            f"--zero: {given.config} has an engine.deepspeed of another stage; take it out there"
        )
    if given.find == "batch" and {"micro", "size"} & given.held.keys():
        raise InputError("--find batch looks for it: leave --micro-batch, --batch.micro and --batch.size out")
    if given.find in ("batch", "card", "side") and given.nodes and given.nodes[0] < given.nodes[1]:
        raise InputError(f"--find {given.find} is of one number of nodes: give --nodes {given.nodes[0]}, say")
    if given.mfu is not None and (not 0 < given.mfu <= 1 or given.run):
        raise InputError("--mfu: a share above 0 and up to 1, and not beside --from, which measures it")
    if given.network is not None and given.network <= 0:
        raise InputError(f"--network: {given.network:g}; allowed: GB/s above 0")

    from diffcore.memory.fitting import layouts, show
    from diffcore.memory.fitting.answer import Asked, answer

    asked = Asked(
        config, str(given.config), given.gpu or layouts.any_card(), layouts.asked(given, config),
        outside(given), given.held, given.rest, given.find, given.run, given.mfu, given.top,
    )  # fmt: skip
    with cli.answer(given) as give:
        tree = answer(asked)
        show.show(tree)
        give(tree)
