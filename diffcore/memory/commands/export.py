"""export: a step for another program's viewer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable, write_atomic, write_json
from diffbase.line import say

PROG = "python -m diffcore.memory export"
KEPT = ("anatomy.json", "report.html", "memory.txt")
"""Files of a report, which no export takes the place of."""
FORMATS = {
    "perfetto": "a Chrome trace (JSON), for https://ui.perfetto.dev",
    "memory_viz": "a snapshot of torch's allocator (pickle), for https://pytorch.org/memory_viz",
}


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags."""
    words = "The step of a memory report, tensor by tensor, as a file that another program's viewer opens."
    parser = cli.Parser(prog=prog, description=words)
    parser.add_argument("report", type=Path, help="run folder or anatomy.json")
    told = "; ".join(f"{name}: {what}" for name, what in FORMATS.items())
    parser.add_argument("--to", choices=list(FORMATS), required=True, help=told)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the file to write")
    cli.add_answer(parser, figures=False)
    return parser


def folder_of(report: Path) -> Path:
    """Where a report's files are."""
    return report if report.is_dir() else report.parent


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Write the file, and print its path."""
    given = parser(prog).parse_args(argv)
    check_writable(given.out.parent)

    from diffcore.memory import anatomy
    from diffcore.memory.exports import memory_viz, perfetto

    told = anatomy.load(given.report)
    if given.out.is_dir():
        raise InputError(f"--out {given.out}: is a folder; give a file's name")
    if given.out.name in KEPT and given.out.resolve().parent == folder_of(given.report).resolve():
        raise InputError(f"--out {given.out}: is the report's own; give another name")
    with cli.answer(given):
        given.out.parent.mkdir(parents=True, exist_ok=True)
        if given.to == "perfetto":
            write_json(given.out, perfetto.trace(told), indent=None)
        else:
            write_atomic(given.out, memory_viz.pickled(told))
        say(f"{given.out}: {FORMATS[given.to]}")
