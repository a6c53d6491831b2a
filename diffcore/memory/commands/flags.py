"""What the commands share: flags over a config, sizes, calibrations."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from diffbase import cli
from diffbase.cli import InputError
from diffbase.line import say
from diffbase.machine import cards, launcher
from diffbase.machine.cards import Card
from diffcore.config import configure
from diffcore.config.offload import OFFLOADS
from diffcore.config.tree import Config

if TYPE_CHECKING:
    from diffcore.memory.calibration import Calibration

SHORT = (
    ("engine", "zero", "zero"),
    ("engine", "precision", "precision"),
    ("engine", "checkpointing", "checkpointing"),
    ("engine", "offload", "offload"),
    ("batch", "micro", "micro_batch"),
)
"""Settings that have a flag of their own here: section, field, flag."""


CARD = 'its name, "A100 40GB", "rtx 4090", "H100 1g.10gb", or what it is sold with, 24GB'
"""Help of ``--gpu``."""


def card(text: str) -> Card:
    """A card by its name, or by its memory (``24GB``, ``24G``, ``24``); argparse's error for all else."""
    if (known := cards.find(text)) is not None:  # first of all: 4090 is no size
        return known
    match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)\s*(?:GB|G)?", text.strip(), re.IGNORECASE)
    if match and float(match[1]):
        return cards.of_size(float(match[1]))
    try:
        return cards.named(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(f"{error}, or write it as 24GB") from None


def outside(given: argparse.Namespace) -> Calibration:
    """What is outside torch's allocator: as ``--calibration`` says, or as the card of ``--gpu`` was measured;
    else what is assumed."""
    from diffcore.memory.calibration import calibration_named, of_card

    return calibration_named(given.calibration) if given.calibration else of_card(given.gpu)


def parser(prog: str, words: str, planned: bool = True, ranks: Sequence[str] = ("--world",)) -> cli.Parser:
    """The parser of a command on a config: its file, and the settings of the engine as flags.

    ``planned``: for any number of ranks and any card, not for those that run it. ``ranks``: the flag's names.
    """
    parser = cli.Parser(prog=prog, description=words, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help=configure.WHICH)
    parser.add_argument("--zero", type=int, choices=range(4), help="ZeRO stage")
    parser.add_argument("--micro-batch", type=cli.between(1), help="samples per forward pass on one rank")
    parser.add_argument("--precision", "--dtype", choices=["fp32", "bf16", "fp16"], help="compute precision")
    parser.add_argument("--checkpointing", choices=["none", "selective", "full"])
    parser.add_argument("--offload", choices=list(OFFLOADS))
    if planned:
        words = "number of ranks, one a GPU"
        parser.add_argument(*ranks, type=cli.between(1, 10**6), default=1, help=words)
        parser.add_argument(
            "--calibration", metavar="GPU", help="NVML's name of a GPU that was measured, or its JSON"
        )
    cli.add_answer(parser)
    return parser


def settings(
    parser: cli.Parser, argv: Sequence[str] | None, planned: bool = True
) -> tuple[argparse.Namespace, Config]:
    """The command's flags, and the config with them and the dotted overrides in it.

    Of the flags ``rest`` are these overrides as given, ``held`` what was given of engine and batch.
    """
    given, rest = parser.parse_known_args(argv)

    if getattr(given, "nodes", None):
        if given.world > 1:
            raise InputError("--gpus and --nodes both say how many GPUs: give one of them")
        given.world = given.nodes[1] * given.gpus_per_node
    ranks = given.world if planned else launcher.place().size
    given.rest = rest
    path, over = configure.command_line(["--config", str(given.config), *rest], prog=parser.prog)
    for section, field, flag in SHORT:
        if getattr(given, flag) is not None and field in over.get(section, {}):
            name = flag.replace("_", "-")
            raise InputError(f"--{name} and --{section}.{field} are one setting: give one of them")
    config = configure.load(path, over)
    given.held = {
        field: value for section in ("engine", "batch") for field, value in over.get(section, {}).items()
    }
    engine = {
        field: getattr(given, flag)
        for section, field, flag in SHORT
        if section == "engine" and getattr(given, flag) is not None
    }
    notes, own = list[str](), config.engine
    other = own.deepspeed is not None and own.zero != engine.get("zero", own.zero)
    if other and "deepspeed" not in over.get("engine", {}):  # else it is of this stage, or is refused
        engine["deepspeed"] = None
        notes.append(f"engine.deepspeed of the config is left aside: --zero {given.zero}, not {own.zero}")
    given.left_aside = "deepspeed" in engine
    given.held |= {field: value for field, value in engine.items() if field != "deepspeed"}
    if engine:
        config = configure.replace(config, "engine", engine)
    if given.micro_batch:
        size = config.batch.size
        if "size" not in over.get("batch", {}):
            accumulation = max(1, round(size / (given.micro_batch * ranks)))
            size = given.micro_batch * accumulation * ranks
            if size != config.batch.size:
                notes.append(
                    f"a batch.size of {size} for --micro-batch {given.micro_batch}, not {config.batch.size}"
                )
        config = configure.replace(config, "batch", {"micro": given.micro_batch, "size": size})
        given.held |= {"micro": given.micro_batch, "size": size}
        config.batch.split(ranks)
    if not given.quiet and launcher.own_rank() == 0:
        say_assumed("; ".join(notes))
    return given, config


def say_assumed(note: str) -> None:
    """Print on stderr what is planned otherwise than the config says, or is assumed, if anything."""
    if note:
        say(f"note: {note}", error=True)
