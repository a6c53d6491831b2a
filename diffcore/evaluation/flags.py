"""What the commands of evaluation share: their flags."""

from __future__ import annotations

import argparse
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable
from diffbase.machine.launcher import own_rank
from diffcore.config.tree import PRETRAINED
from diffcore.runs.sampling import check_seed


def parser(prog: str, doc: str | None) -> cli.Parser:
    """A command's parser, whose help is the module's own text, without the example in its first line."""
    words = (doc or "").split("\n\n", 1)[1]
    parser = cli.Parser(prog=prog, description=words, formatter_class=argparse.RawDescriptionHelpFormatter)
    cli.add_answer(parser)
    return parser


def add_run(parser: cli.Parser, samples: int, of: str) -> None:
    """The run and its judge, how many images (``of`` says of what) and the seed of them."""
    parser.add_argument("run", type=Path, help=cli.RUN_HELP)
    add_samples(parser, samples, of)
    add_judge(parser)


def add_judge(parser: cli.Parser) -> None:
    """The judge's folder, and where the shards are."""
    judge = "the judge's folder (default: data.judge of the run, or beside the shards)"
    parser.add_argument("--judge", type=Path, help=judge)
    add_data(parser)


def add_data(parser: cli.Parser) -> None:
    """Where the run's shards are, if they have moved."""
    parser.add_argument(
        "--data", metavar="PLACE", help="the run's shards, where they have moved: folder or URL"
    )


def add_samples(parser: cli.Parser, samples: int, of: str) -> None:
    """How many images, and their seed."""
    parser.add_argument("--samples", type=int, default=samples, help=f"{of} (default {samples})")
    parser.add_argument("--seed", type=int, default=1, help="of the noise and the labels (default 1)")
    # Some launchers add it.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def check(arguments: argparse.Namespace, least: int = 2) -> None:
    """InputError for too few samples or a seed out of range."""
    if arguments.samples < least:
        raise InputError(f"--samples {arguments.samples}: at least {least}")
    check_seed(arguments.seed)


def add_out(parser: cli.Parser) -> None:
    """Where the results go."""
    parser.add_argument("--out", type=Path, help="folder for what is written (default: RUN)")


def given_out(arguments: argparse.Namespace) -> Path:
    """The folder of ``add_out``, checked. InputError where it is missing and the weights are in no folder."""
    out: Path = arguments.out or arguments.run
    if not _is_folder(out):
        raise InputError(f"{out}: is no folder to write into; give one with --out")
    check_out(out)
    return out


def check_out(*folders: Path) -> None:
    """OSError where the results could not be written into ``folders``, before the work that they need.

    Asked by rank 0, which writes them. InputError where one is a file with a card, or names one that ships.
    """
    for folder in folders:
        if not _is_folder(folder):
            raise InputError(f"{folder}: is no folder to write into; give a run folder")
    if own_rank() == 0:
        check_writable(*folders)


def _is_folder(path: Path) -> bool:
    """Whether it is, or could become one."""
    return not (path.is_file() or str(path).startswith(PRETRAINED))


def folder_of_page(out: Path) -> Path:
    """The folder of a page that is to be written. InputError where a folder has the page's name."""
    if out.is_dir():
        raise InputError(f"--out {out}: is a folder; give the page's name in it")
    return out.parent


def numbers(flag: str, text: str) -> list[float]:
    """ "0,1,2" -> [0.0, 1.0, 2.0]; InputError for anything else."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{flag} {text}: expected numbers with commas between") from None
    if any(not 0 <= value < 1e6 for value in values):
        raise InputError(f"{flag} {text}: expected numbers from 0 up")
    return values
