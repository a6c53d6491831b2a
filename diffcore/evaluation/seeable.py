"""python -m diffcore.evaluation.seeable DATA [--samples 200]

How much of the stand-in avatars can be seen at the size they are packed at, and does the judge see it? For
held-out images every other variant of every attribute is drawn, all else the same: an attribute can be seen
in an image if each of them changes at least 8 pixels by more than 25 of 255. (Brown brows on brown skin
cannot, nor eyes behind dark glasses.) An attribute counts as one that can be seen at that size if that holds
in at least nine images of ten. For stand-in avatars only; writes seeable.json beside the judge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from diffbase import cli
from diffbase.line import printable, say
from diffbase.tables import TextTable
from diffcore.evaluation import flags

if TYPE_CHECKING:
    from diffcore.evaluation.studies.visibility import Visibility


PROG = "python -m diffcore.evaluation.seeable"


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    parser = flags.parser(prog, __doc__)
    parser.add_argument("data", type=Path, help="folder of packed stand-in avatars")
    what = "held-out images looked at (default 200)"
    parser.add_argument("--samples", "--images", type=int, default=200, dest="images", help=what)
    parser.add_argument("--judge", type=Path, help="the judge's folder (default: DATA/judge)")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """The command line; see ``--help``."""
    a = parser(prog).parse_args(argv)

    from diffcore.evaluation.studies import visibility

    with cli.answer(a) as give:
        found = visibility.measure(a.data, a.judge, a.images)
        _show(a.data, found)
        give(asdict(found))


def _show(data: Path, found: Visibility) -> None:
    headings = ("attribute", "images that show it", "judge, all images", "judge, images that show it")
    table = TextTable(f"{data}: what can be seen at {found.size} x {found.size}", *headings)
    for name, row in found.attributes.items():
        shown, judge, where = row["shown"], row["judge"], row["judge_where_shown"]
        there = f"{where['share']:.1%} of {where['count']}"
        table.add_row(name, f"{shown:.0%}", f"{judge['share']:.1%}", there)
    table.print()
    say(
        f"can be seen at this size: {printable(', '.join(found.able))}; the judge's mean over them "
        f"{found.over_able:.2%} of {found.images} images. Over all {len(found.attributes)} attributes, "
        f"where they show, {found.over_all:.2%}."
    )


if __name__ == "__main__":
    cli.run(main)
