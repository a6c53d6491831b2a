"""What each command does under each fault of the machine: the table of docs/reliability.md.

    python benchmarks/fault_matrix.py [--fault "no HOME"] [--command train] [--write docs/reliability.md]

Each cell is done to a fresh copy of a small world (pictures, packed shards, a trained run): the command runs
under the fault (tests/support/faults), then once more without it. Told are the exit code, and whether the
second run ends well with the same bytes as where nothing ever failed. Prints one JSON object; ``--write``
puts the table between the marks of that file. Needs a C compiler. Ends with 1 if a cell lost something or
ended in a traceback.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support import small_set
from tests.support.faults import kit
from tests.support.faults.kit import Faults, fail, short, slow
from tests.support.numerics import CONFIG

REPOSITORY = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- fault_matrix: begin -->", "<!-- fault_matrix: end -->"
STEPS = ["--train.steps", "4", "--train.checkpoint_every", "2"]


@dataclass(frozen=True)
class Command:
    """A command of the toolkit in a world, and the files that it leaves, which have to be the same."""

    arguments: Sequence[str]
    reads: str
    """Part of the path of what it reads."""
    writes: str
    """The same of what it writes; "" for nothing."""
    result: Sequence[str] = ()


COMMANDS = {
    "pack": Command(
        ["shards.pack", "source", "--out", "out/shards", "--size", "16", "--crop", "32", "--jobs", "1"],
        "source/cs1", "out/shards", ["out/shards/*"],
    ),
    "verify": Command(["shards.verify", "shards", "--jobs", "1"], "train-000000.tar", ""),
    "train": Command(
        ["diffcore.train", "--config", "small.yaml", "--run", "run/new", *STEPS],
        "train-000000.tar", "run/new", ["run/new/checkpoints/step-00000004/shard-*"],
    ),
    "resume": Command(
        ["diffcore.train", "--config", "small.yaml", "--run", "run/old", *STEPS],
        "train-000000.tar", "run/old", ["run/old/checkpoints/step-00000004/shard-*"],
    ),
    "sample": Command(
        ["diffcore.sample", "run/old", "--samples", "2", "--out", "drawn.png"],
        "step-00000002", "drawn", ["drawn.png"],
    ),
    "export": Command(
        ["diffcore.export", "run/old", "--out", "export"], "step-00000002", "export", ["export/*"]
    ),
    "summary": Command(["diffcore.summary", "run/old"], "run/old", ""),
}  # fmt: skip

Done = tuple[int, str]
Rules = Callable[[Command], list[str]]


def rules(make: Rules) -> Callable[[Command, Path], Mapping[str, Any]]:
    """How a command is run under rules for calls."""
    return lambda command, world: {"env": Faults(world).env(*make(command))}


FAULTS: dict[str, Callable[[Command, Path], Mapping[str, Any]]] = {
    "none": lambda command, world: {},
    "reads fail three times (EIO)": rules(lambda c: [fail("read", errno.EIO, c.reads, times=3)]),
    "reads fail (EIO)": rules(lambda c: [fail("read", errno.EIO, c.reads)]),
    "opening fails (ESTALE)": rules(lambda c: [fail("open", errno.ESTALE, c.reads)]),
    "reads give half": rules(lambda c: [short("read", c.reads)]),
    "a slow disk (50 ms)": rules(lambda c: [slow("read", 0.05, c.reads)]),
    "writes fail (ENOSPC)": rules(lambda c: [fail("write", errno.ENOSPC, c.writes or "nothing")]),
    "writes do half": rules(lambda c: [short("write", c.writes or "nothing")]),
    "fsync fails (EIO)": rules(lambda c: [fail("sync", errno.EIO, c.writes or "nothing")]),
    "no locks (ENOLCK)": rules(lambda c: [fail("lock", errno.ENOLCK)]),
    "no locks (ENOSYS)": rules(lambda c: [fail("lock", errno.ENOSYS)]),
    "80 open files": lambda command, world: {"preexec_fn": kit.few_descriptors(80)},
    "output closed": lambda command, world: {"closed": (1,)},
    "output to a full disk": lambda command, world: {"stdout": "/dev/full"},
    "output to head -1": lambda command, world: {"head": True},
    "no HOME": lambda command, world: {"without_home": True},
    "the clock a day ahead": rules(lambda c: [kit.clock(86400)]),
    "the clock a day back": rules(lambda c: [kit.clock(-86400)]),
}


def run(command: Command, world: Path, how: Mapping[str, Any]) -> Done:
    """The exit code, and the last line of errors."""
    env = dict(os.environ) | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "DS_ACCELERATOR": "cpu"}
    if how.get("without_home"):
        env = kit.without_home(env)
    call = [sys.executable, "-m", *command.arguments]
    if how.get("closed"):
        call = kit.closed(call, *how["closed"])
    if how.get("head"):
        call = ["bash", "-c", 'set -o pipefail; "$@" | head -1', "bash", *call]
    with ExitStack() as files:
        out = files.enter_context(open(how["stdout"], "w")) if "stdout" in how else subprocess.DEVNULL  # noqa: PTH123
        done = subprocess.run(
            call, cwd=world, env=env | how.get("env", {}), stdout=out, stderr=subprocess.PIPE, text=True,
            timeout=300, preexec_fn=how.get("preexec_fn"),
        )  # fmt: skip
    if "Traceback" in done.stderr:
        return done.returncode, "TRACEBACK " + done.stderr.strip().splitlines()[-1]
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    return done.returncode, lines[-1].replace(f"{world}/", "") if lines else ""


def left(command: Command, world: Path) -> str:
    """A hash of the files that count."""
    digest = hashlib.sha256()
    for pattern in command.result:
        for path in sorted(world.glob(pattern)):
            if path.is_file() and path.suffix != ".md":
                digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def make_world(folder: Path) -> Path:
    """Pictures, their shards, a config, and a run of two steps."""
    world = folder / "world"
    world.mkdir()
    small_set.packed(folder, 24)
    shutil.move(folder / "source", world / "source")
    shutil.move(folder / "shards", world / "shards")
    (world / "small.yaml").write_text(CONFIG.replace("PACKED", "shards"))
    first = Command(
        ["diffcore.train", "--config", "small.yaml", "--run", "run/old", "--train.steps", "2"], "", ""
    )
    code, line = run(first, world, {})
    assert code == 0, line
    return world


def cell(command: Command, how: Callable[[Command, Path], Mapping[str, Any]], world: Path) -> dict[str, Any]:
    """One cell: the command under a fault, then without it, in a copy of the world."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "w"
        shutil.copytree(world, copy)
        code, line = run(command, copy, how(command, copy))
        after, again = 0, ""
        if code and command.result:
            after, again = run(command, copy, {})
        return {"code": code, "line": line, "after": after, "again": again, "left": left(command, copy)}


def words(found: Mapping[str, Any], wanted: str) -> str:
    """A cell of the table."""
    text = "goes on" if found["code"] == 0 else f"ends with {found['code']}"
    if found["after"] or found["left"] != wanted:
        text += ", then not the same"
    return text


def table(cells: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Markdown."""
    names = list(next(iter(cells.values())))
    lines = ["| | " + " | ".join(f"`{name}`" for name in names) + " |", "|---" * (len(names) + 1) + "|"]
    for fault, row in cells.items():
        if fault != "none":
            said = [words(row[name], cells["none"][name]["left"]) for name in names]
            lines.append(f"| {fault} | " + " | ".join(said) + " |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Do every cell; 1 if one lost something or ended in a traceback."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--fault", action="append", choices=FAULTS)
    parser.add_argument("--command", action="append", choices=COMMANDS)
    parser.add_argument("--write", type=Path, help="a Markdown file with the marks of this program")
    a = parser.parse_args()
    began = time.monotonic()
    chosen = ["none", *(fault for fault in a.fault or FAULTS if fault != "none")]
    with tempfile.TemporaryDirectory() as name:
        world = make_world(Path(name))
        cells: dict[str, dict[str, Any]] = {}
        for fault in chosen:
            cells[fault] = {}
            for command in a.command or COMMANDS:
                found = cells[fault][command] = cell(COMMANDS[command], FAULTS[fault], world)
                print(f"{fault}: {command}: {found['code']} {found['line']}", file=sys.stderr, flush=True)
    if a.write:
        text = a.write.read_text()
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        a.write.write_text(f"{head}{BEGIN}\n\n{table(cells)}\n{END}{tail}")
    wrong = [
        f"{fault}: {name}: {found['line'] or found['again']}"
        for fault, row in cells.items()
        for name, found in row.items()
        if "not the same" in words(found, cells["none"][name]["left"]) or "TRACEBACK" in found["line"]
    ]
    print(json.dumps({"seconds": round(time.monotonic() - began), "cells": cells, "wrong": wrong}, indent=1))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
