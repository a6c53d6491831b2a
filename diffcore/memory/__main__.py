"""python -m diffcore.memory plan | fit | measure | compare | seed-table

plan      what a run will take, before it runs; no GPU needed
fit       the largest micro batch of a card, and what makes a wanted one fit
measure   the same figures of a few real steps, on this machine
compare   two reports side by side
seed-table  writes docs/seed-memory.md

Every command has --help. Dotted overrides of the config (--model.heads 8) go after the rest.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase import cli
from diffbase.cli import InputError

if TYPE_CHECKING:
    from diffcore.config import Config

COMMANDS = ("plan", "fit", "measure", "compare", "seed-table")
EXIT_DOES_NOT_FIT = 2


def main(argv: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if argv is None else argv)
    if not given or given[0] in ("-h", "--help"):
        print(__doc__)
        return
    if given[0] not in COMMANDS:
        raise InputError(f"unknown command {given[0]!r}; allowed: {', '.join(COMMANDS)}")
    {"plan": plan, "fit": fit, "measure": measure, "compare": compare, "seed-table": seed_table}[given[0]](
        given[1:]
    )


def plan(argv: Sequence[str]) -> None:
    parser = _parser("plan", "What a run will take on a rank, at four moments of a step.")
    parser.add_argument("--rank", type=int, default=0, help="the rank that is planned (shares differ little)")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: no CUDA allocator")
    parser.add_argument("--gpu-memory", type=gigabytes, help="what the card is sold with, such as 24GB")
    parser.add_argument("--check", action="store_true", help="say in one line whether it fits --gpu-memory")
    parser.add_argument("--table", action="store_true", help="every stage, precision, checkpointing, world")
    parser.add_argument("--out", type=Path, help="folder for anatomy.json and report.html")
    given, config = _settings(parser, argv)

    from diffcore.memory import advise, report
    from diffcore.memory.calibration import capacity

    if not 0 <= given.rank < given.world:
        raise InputError(f"--rank {given.rank} is not one of {given.world} ranks")
    planner = advise.Planner(config, device=given.device, outside=_outside(given.calibration))
    if given.table:
        for flag in ("rank", "world", "device", "gpu_memory", "check", "out"):
            if getattr(given, flag) != parser.get_default(flag):
                raise InputError(f"--{flag.replace('_', '-')} does not go with --table, which has its own")
        _say_assumed(planner.data.assumed)
        report.print_table(advise.table(planner, [2**n for n in range(11)], ["fp32", "bf16"]))
        return
    planned = planner.plan(config, given.world, given.rank)
    room = capacity(given.gpu_memory) if given.gpu_memory else None
    if given.check:
        if room is None:
            raise InputError("--check needs --gpu-memory, such as 80GB")
        if planned.smi > room:
            raise InputError(_does_not_fit(advise, planner, config, given.world, planned.smi, room))
        _say_assumed(planner.data.assumed)
        print(f"fits: {planned.smi / 2**20:,.0f} of {room / 2**20:,.0f} MiB are planned on each rank")
        return
    advice = advise.words(planner, config, given.world, room) if given.device == "cuda" else []
    anatomy = report.planned(config, [planned], advice)
    report.show(anatomy)
    if given.out:
        print(f"report: {report.save(given.out, anatomy)}")


def _does_not_fit(advise: Any, planner: Any, config: Config, world: int, smi: int, room: int) -> str:
    steps = advise.remedies(planner, config, world, room)
    would = f"; would fit with {', '.join(steps[-1].settings)}" if steps and steps[-1].fits else ""
    largest = planner.largest_of_batch(config, world, room)
    if largest:
        would += f"; or with batch.micro {largest} (accumulation makes up for it)"
    assumed = f" ({planner.data.assumed})" if planner.data.assumed else ""
    return (
        f"does not fit: {smi / 2**20:,.0f} MiB are planned on each rank, {room / 2**20:,.0f} are there"
        f"{would}{assumed}"
    )


def _say_assumed(assumed: str) -> None:
    if assumed:
        print(f"note: {assumed}", file=sys.stderr)


def _outside(gpu: str | None) -> Any:
    from diffcore.memory.calibration import ASSUMED, CALIBRATIONS, calibration

    known = sorted({name for name, _ in CALIBRATIONS})
    if gpu is None:
        return ASSUMED
    if gpu not in known:
        there = ", ".join(known) or "none yet; benchmarks/gpu_memory.py makes one"
        raise InputError(f"--calibration {gpu}: no GPU of that name was measured; known: {there}")
    return calibration(gpu)


def fit(argv: Sequence[str]) -> None:
    parser = _parser("fit", "The largest micro batch of a card, and what makes a wanted one fit.")
    parser.add_argument("--gpu", type=gigabytes, required=True, help="what the card is sold with: 24GB")
    given, config = _settings(parser, argv)

    from diffcore.memory import advise, report
    from diffcore.memory.calibration import capacity

    room, planner = capacity(given.gpu), advise.Planner(config, outside=_outside(given.calibration))
    _say_assumed(planner.data.assumed)
    micro = config.batch.split(given.world)[0]
    report.print_fit(
        planner.largest(config, given.world, room),
        micro,
        planner.plan(config, given.world).smi,
        room,
        advise.remedies(planner, config, given.world, room),
        [
            (change, planner.plan(changed, given.world).smi, planner.largest(changed, given.world, room))
            for change, changed in planner.changes(given.world)
        ],
    )


def measure(argv: Sequence[str]) -> None:
    parser = _parser("measure", "Three real steps on random data; under the deepspeed launcher, every rank.")
    parser.add_argument("--out", type=Path, required=True, help="folder for anatomy.json and report.html")
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    given, config = _settings(parser, argv, planned=False)

    from diffcore.memory.rehearse import rehearse

    rehearse(config, given.out)


def compare(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m diffcore.memory compare", description="Two reports side by side.")
    parser.add_argument("a", type=Path, help="run folder or anatomy.json")
    parser.add_argument("b", type=Path, help="the other one")
    given = parser.parse_args(argv)

    from diffcore.memory import report

    report.print_comparison(report.load(given.a), report.load(given.b), str(given.a), str(given.b))


def seed_table(argv: Sequence[str]) -> None:
    parser = cli.Parser(prog="python -m diffcore.memory seed-table", description="Write docs/seed-memory.md.")
    parser.add_argument("--out", type=Path, default=Path("docs/seed-memory.md"))
    given = parser.parse_args(argv)

    from diffcore.memory.seed_table import write

    print(write(given.out))


def gigabytes(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|G)?", text, re.IGNORECASE)
    if not match or not float(match[1]):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size of memory; write it as 24GB")
    return float(match[1])


def _parser(command: str, words: str) -> cli.Parser:
    parser = cli.Parser(prog=f"python -m diffcore.memory {command}", description=words, allow_abbrev=False)
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="YAML of the run")
    parser.add_argument("--zero", type=int, choices=range(4), help="ZeRO stage")
    parser.add_argument("--micro-batch", type=int, help="samples a forward pass on one rank")
    parser.add_argument("--dtype", choices=["fp32", "bf16", "fp16"], help="compute precision")
    parser.add_argument("--checkpointing", choices=["none", "selective", "full"])
    parser.add_argument("--offload", choices=["none", "optimizer"])
    return parser


def _settings(
    parser: cli.Parser, argv: Sequence[str], planned: bool = True
) -> tuple[argparse.Namespace, Config]:
    """The command's flags, and the config with them and the dotted overrides in it."""
    if planned:
        parser.add_argument("--world", type=int, default=1, help="number of ranks")
        parser.add_argument("--calibration", metavar="GPU", help="NVML's name of a GPU that was measured")
    given, rest = parser.parse_known_args(argv)

    from diffcore import configure
    from diffcore.config import Engine

    ranks = given.world if planned else int(os.environ.get("WORLD_SIZE", 1))
    if ranks < 1 or (given.micro_batch is not None and given.micro_batch < 1):
        raise InputError("--world and --micro-batch must be at least 1")
    config = configure.parse(["--config", str(given.config), *rest], prog=parser.prog)
    engine = {
        name: value
        for name, value in {
            "zero": given.zero,
            "precision": given.dtype,
            "checkpointing": given.checkpointing,
            "offload": given.offload,
        }.items()
        if value is not None
    }
    if missing := set(engine) - set(Engine.model_fields):
        raise InputError(f"--{missing.pop()}: engine has no such setting in this version")
    if given.zero is not None and config.engine.zero != given.zero:
        engine["deepspeed"] = None  # its JSON names another stage
    if engine:
        config = configure.replace(config, "engine", engine)
    if given.micro_batch:
        accumulation = max(1, round(config.batch.size / (given.micro_batch * ranks)))
        size = given.micro_batch * accumulation * ranks
        config = configure.replace(config, "batch", {"micro": given.micro_batch, "size": size})
    return given, config


if __name__ == "__main__":
    cli.run(main)
