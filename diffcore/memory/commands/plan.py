"""plan: what a run will take on a rank."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import check_writable
from diffbase.line import say
from diffcore.memory.commands import flags, module
from diffcore.memory.commands.flags import CARD, card, outside, say_assumed, settings

PROG = "python -m diffcore.memory plan"
WORDS = """What a run will take on a rank, at the moments of a step. Of any other network:
plan package.module:function, or plan FOLDER with a config.json (plan TARGET --help)."""
OWN = ("rank", "world", "device", "gpu", "check", "out")
"""Flags that --table has no use for."""


def parser(prog: str = PROG) -> cli.Parser:
    """The command's flags; others override the config."""
    parser = flags.parser(prog, WORDS)
    add = parser.add_argument
    add("--rank", type=int, default=0, help="the rank that is planned (shares differ little)")
    add("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: no CUDA allocator")
    add("--gpu", "--gpu-memory", type=card, help=CARD)
    add("--check", action="store_true", help="say in one line whether it fits --gpu")
    add("--table", action="store_true", help="every stage, precision, checkpointing, world")
    add("--out", type=Path, help="folder for anatomy.json and report.html")
    return parser


def main(argv: Sequence[str] | None = None, prog: str = PROG) -> None:
    """Print the plan of a rank, a table of plans or whether one fits a card (InputError if not)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-"):
        module.main(words, prog)
        return
    known = parser(prog)
    given, config = settings(known, argv)
    if given.out:
        check_writable(given.out)

    from diffcore.memory import advise, report, tables

    planner = advise.Planner(config, device=given.device, outside=outside(given))
    room = given.gpu.usable if given.gpu else None
    if given.table:
        for flag in OWN:
            if getattr(given, flag) != known.get_default(flag):
                raise InputError(f"--{flag} does not go with --table, which has its own")
        if config.engine.deepspeed is not None:
            say(f"every stage is planned with configs/deepspeed, none with {config.engine.deepspeed}")
        with cli.answer(given) as give:
            say_assumed(planner.data.assumed)
            rows = list(advise.table(planner, [2**n for n in range(11)], ["fp32", "bf16"]))
            tables.print_table(rows)
            give(rows)
        return
    if given.check and room is None:
        raise InputError("--check needs --gpu, such as 80GB")
    if given.check and given.out:
        raise InputError("--out does not go with --check, which makes no report")
    if room is not None and given.device == "cpu":
        raise InputError("--gpu does not go with --device cpu")
    planned = planner.plan(config, given.world, given.rank)
    if given.check:
        assert room is not None
        if planned.smi > room:
            raise InputError(advise.does_not_fit(planner, config, given.world, planned.smi, room))
        with cli.answer(given) as give:
            say_assumed(planner.data.assumed)
            print(f"fits: {planned.smi / 2**20:,.0f} of {room / 2**20:,.0f} MiB are planned on each rank")
            give({"fits": True, "planned_bytes": planned.smi, "room_bytes": room})
        return
    planned = planner.with_stages(planned, config)
    advice = advise.words(planner, config, given.world, room) if given.device == "cuda" else []
    saved = report.savings(planner, config, given.world)
    anatomy = report.planned(config, [planned], advice, room, saved)
    with cli.answer(given) as give:
        tables.show(anatomy)
        if given.out:
            say(f"report: {report.save(given.out, anatomy)}")
        give(anatomy)
