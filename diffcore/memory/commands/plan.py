"""plan: what a run will take on a rank."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from diffbase.cli import InputError
from diffcore.memory.commands.flags import gigabytes, parser, say_assumed, settings


def plan(argv: Sequence[str]) -> None:
    """Print the plan of a rank, a table of plans or whether one fits a card (InputError if not)."""
    flags = parser("plan", "What a run will take on a rank, at four moments of a step.")
    flags.add_argument("--rank", type=int, default=0, help="the rank that is planned (shares differ little)")
    flags.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: no CUDA allocator")
    flags.add_argument("--gpu-memory", type=gigabytes, help="what the card is sold with, such as 24GB")
    flags.add_argument("--check", action="store_true", help="say in one line whether it fits --gpu-memory")
    flags.add_argument("--table", action="store_true", help="every stage, precision, checkpointing, world")
    flags.add_argument("--out", type=Path, help="folder for anatomy.json and report.html")
    given, config = settings(flags, argv)

    from diffcore.memory import advise, report, tables
    from diffcore.memory.calibration import calibration_named, capacity

    planner = advise.Planner(config, device=given.device, outside=calibration_named(given.calibration))
    if given.table:
        for flag in ("rank", "world", "device", "gpu_memory", "check", "out"):
            if getattr(given, flag) != flags.get_default(flag):
                raise InputError(f"--{flag.replace('_', '-')} does not go with --table, which has its own")
        say_assumed(planner.data.assumed)
        tables.print_table(advise.table(planner, [2**n for n in range(11)], ["fp32", "bf16"]))
        return
    planned = planner.plan(config, given.world, given.rank)
    room = capacity(given.gpu_memory) if given.gpu_memory else None
    if given.check:
        if room is None:
            raise InputError("--check needs --gpu-memory, such as 80GB")
        if planned.smi > room:
            raise InputError(advise.does_not_fit(planner, config, given.world, planned.smi, room))
        say_assumed(planner.data.assumed)
        print(f"fits: {planned.smi / 2**20:,.0f} of {room / 2**20:,.0f} MiB are planned on each rank")
        return
    advice = advise.words(planner, config, given.world, room) if given.device == "cuda" else []
    anatomy = report.planned(config, [planned], advice)
    tables.show(anatomy)
    if given.out:
        print(f"report: {report.save(given.out, anatomy)}")
