"""What the commands share: flags over a config, sizes, calibrations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.line import say
from diffbase.machine import launcher
from diffcore.config import configure
from diffcore.config.offload import OFFLOADS
from diffcore.config.tree import Config


def gigabytes(text: str) -> float:
    """``24GB``, ``24G``, ``24`` or a card's name as a number of GB; argparse's error for anything else."""
    from diffcore.memory.calibration import CARDS, card

    if (known := card(text)) is not None:
        return known
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*(?:GB|G)?", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} is not a size of memory; write it as 24GB, or name a card: {', '.join(CARDS)}"
        )
    return float(match[1])


def parser(prog: str, words: str, planned: bool = True) -> cli.Parser:
    """The parser of a command on a config: its file, and the settings of the engine as flags.

    ``planned``: for any number of ranks and any card, not for those that run it.
    """
    parser = cli.Parser(prog=prog, description=words, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help=configure.WHICH)
    parser.add_argument("--zero", type=int, choices=range(4), help="ZeRO stage")
    parser.add_argument("--micro-batch", type=cli.between(1), help="samples per forward pass on one rank")
    parser.add_argument("--precision", "--dtype", choices=["fp32", "bf16", "fp16"], help="compute precision")
    parser.add_argument("--checkpointing", choices=["none", "selective", "full"])
    parser.add_argument("--offload", choices=list(OFFLOADS))
    if planned:
        parser.add_argument("--world", type=cli.between(1, 10**6), default=1, help="number of ranks")
        parser.add_argument("--calibration", metavar="GPU", help="NVML's name of a GPU that was measured")
    cli.add_answer(parser)
    return parser


def settings(
    parser: cli.Parser, argv: Sequence[str] | None, planned: bool = True
) -> tuple[argparse.Namespace, Config]:
    """The command's flags, and the config with them and the dotted overrides in it."""
    given, rest = parser.parse_known_args(argv)

    ranks = given.world if planned else launcher.place().size
    config = configure.parse(["--config", str(given.config), *rest], prog=parser.prog)
    engine = {
        name: value
        for name, value in {
            "zero": given.zero,
            "precision": given.precision,
            "checkpointing": given.checkpointing,
            "offload": given.offload,
        }.items()
        if value is not None
    }
    if given.zero is not None and config.engine.zero != given.zero:
        engine["deepspeed"] = None  # its JSON names another stage
    if engine:
        config = configure.replace(config, "engine", engine)
    if given.micro_batch:
        accumulation = max(1, round(config.batch.size / (given.micro_batch * ranks)))
        size = given.micro_batch * accumulation * ranks
        config = configure.replace(config, "batch", {"micro": given.micro_batch, "size": size})
    return given, config


def say_assumed(assumed: str) -> None:
    """Print on stderr what a plan assumes of missing shards, if anything."""
    if assumed:
        say(f"note: {assumed}", error=True)
