"""Command lines of every command, parsed; and run where a wrong one ends soon and a right one only reads."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcore import __main__ as command_line
from diffcore.commands import COMMANDS
from diffcore.config import configure
from diffcore.memory.commands import flags as memory_flags
from launch import submit
from tests.support.fuzz.target import Target

SEPARATOR = b"\x00"  # which no argument can hold
EXAMPLES = [
    "train --config demo --optimizer.lr 1e-4 --engine.zero 2 --model.channels 16,32,64 --data.path s3://b/x",
    "submit --config demo --cluster box --nodes 1-2 --gpus-per-node 2 --time 1:30:00 --after 77 --seed 3",
    "submit --config demo --cluster plain-gpu --run runs/x --name x --partition a --exclude n1,n2",
    "plan --config demo --zero 2 --micro-batch 4 --world 2 --precision bf16 --batch.size 8",
    "summary runs/x --json",
    "checkpoints runs/x --keep 1 2 --release 3",
    "export runs/x --out out --checkpoint best",
    "evaluate runs/x --samples 8 --seed 3 --guidance 2.0 --steps 5 --out out",
    "sample runs/x --out x.png --count 4 --seed 1 --set hair_color=3",
    "sweep runs/x --scales 0,1.5 --steps 10,20 --samples 8",
    "judge data/x --epochs 3 --width 32 --lr 0.002 --threads 2",
    "fit --config demo --gpu 24GB",
    "compare a.json b.json",
    "jobs logs runs/x --rank 1 --follow",
    "pack data/x --out out --size 8 --crop 16 --jobs 2",
    "render --out x --count 3 --seed 1 --jobs 1",
    "verify data/x --jobs 1",
    "box up --nodes 2 --gpus 2 --cpus 4 --dir x",
    "doctor --json",
]
WORDS = [
    SEPARATOR,
    SEPARATOR,
    b"=",
    b"-",
    b"--",
    b"--help",
    b"nan",
    b"inf",
    b"-inf",
    b"1e400",
    b"9" * 5000,
    b"-1",
    b"[8,16",
]
WORDS += [
    b"{",
    b'{"a":' * 500,
    b"[" * 3000,
    b"--model",
    b"--engine",
    b"--set",
    b"--time",
    b"--json",
    b"1-",
    b"\xff",
    b"\n",
]


def train(arguments: list[str]) -> object:
    return configure.parse(arguments)


def dry(arguments: list[str]) -> object:
    return submit.main([*arguments, "--dry-run"])


def plan(arguments: list[str]) -> object:
    return memory_flags.settings(memory_flags.parser("plan", "plan"), arguments)


def reads(name: str) -> Callable[[list[str]], object]:
    return lambda arguments: command_line.main([name, *arguments])


RUN: dict[str, Callable[[list[str]], object]] = {"train": train, "submit": dry, "plan": plan}
RUN |= {name: reads(name) for name in ("summary", "compare")}


def target() -> Target:
    modules: dict[str, Any] = {
        name: importlib.import_module(command.module) for name, command in COMMANDS.items()
    }

    def feed(data: bytes, folder: Path) -> object:
        os.environ |= {"XDG_STATE_HOME": str(folder), "DIFFCORE_PROFILES": ""}
        name, *arguments = os.fsdecode(data).split("\0")
        try:
            if name in RUN:
                return RUN[name](arguments)
            if name in modules:
                return modules[name].parser(f"diffcore {name}").parse_args(arguments)
            return command_line.main([name, *arguments])
        except SystemExit as leaves:
            if leaves.code:
                raise
            return None  # --help

    return Target([os.fsencode(line.replace(" ", "\0")) for line in EXAMPLES], feed, WORDS)
