"""What clusters do to jobs, done to this toolkit and to what people use instead: one table.

    pip install pytorch-lightning torchmetrics                      # and nvidia-resiliency-ext, on Linux
    python benchmarks/chaos.py [--only crash ...] [--with diffcore ...] [--write docs/chaos.md]

Needs root and Slurm's packages (docs/slurm-box.md). Each contender trains the same network on the same shards
for the same steps, on two nodes of one rank, with a checkpoint every epoch of ten steps; its files are in
``benchmarks/peers``, as its documentation has them. It runs once undisturbed and once for each fault. Nobody
helps, but for ``cancel``, after which its command is given once more. What happened is read from a trace of
every forward pass, which knows weights and samples and asks no contender's books (``chaos_lineage.py``).

Prints one JSON object. Of each contender and fault: whether it came to its last step (``done``, else Slurm's
state), the longest time without a step that had not been taken before, steps taken again, samples that the
final weights saw twice in an epoch or never, and whether the final weights are those of the undisturbed run,
bit for bit.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import chaos_lineage
from benchmarks.chaos_arena import EPOCH, OVER, PACE, PATIENCE, SAMPLES, STEPS, Arena, Entry
from benchmarks.job_lab import FailedError, Lab, a_box

BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"


# --- faults: each is done to a training that has passed a checkpoint; returns when it was done ---


def crash(entry: Entry) -> float:
    """`kill -9` of a rank"""
    os.kill(entry.pid(1), signal.SIGKILL)
    return time.time()


def hang(entry: Entry) -> float:
    """SIGSTOP of a rank"""
    os.kill(entry.pid(1), signal.SIGSTOP)
    return time.time()


def torn(entry: Entry) -> float:
    """`kill -9` of rank 0 while it writes a checkpoint"""
    pid = entry.pid(0)

    def sizes() -> dict[Path, tuple[int, int]]:
        found = {}
        for path in entry.saved():
            with contextlib.suppress(OSError):
                found[path] = (path.stat().st_size, path.stat().st_mtime_ns)
        return found

    before, until = sizes(), time.monotonic() + PATIENCE
    while sizes() == before:
        if time.monotonic() > until:
            raise FailedError("no checkpoint was begun")
    os.kill(pid, signal.SIGKILL)
    killed = time.time()
    entry.hit = not (files := entry.saved()) or entry.unfinished(files[-1])
    return killed


def spoiled(entry: Entry) -> float:
    """the newest checkpoint cut short, then `kill -9`"""
    pid = entry.pid(0)
    os.kill(pid, signal.SIGSTOP)
    newest = entry.saved()[-1]
    os.truncate(newest, newest.stat().st_size // 2)
    os.kill(pid, signal.SIGKILL)
    return time.time()


def requeue(entry: Entry) -> float:
    """`scontrol requeue`"""
    entry.arena.lab.ask("scontrol", "requeue", entry.number)
    return time.time()


def preempt(entry: Entry) -> float:
    """preemption by a higher partition, with notice"""
    script = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    entry.arena.lab.ask("sbatch", *script)
    return time.time()


def time_limit(entry: Entry) -> float:
    """the time limit, with notice"""
    entry.pace(1)  # Slurm looks at time limits twice a minute
    ask, asked = entry.arena.lab.ask, time.time()
    ask("scontrol", "update", f"JobId={entry.number}", "TimeLimit=1")
    entry.wait("the time limit", lambda: entry.state != "RUNNING")
    ask("scontrol", "update", f"JobId={entry.number}", "TimeLimit=30")
    entry.pace(PACE)
    return asked


def node(entry: Entry, name: str = "n2", with_jobs: bool = True) -> float:
    """a node lost with all that runs on it, back when Slurm has noticed"""
    box = entry.arena.lab.box
    entry.pace(1)
    box.kill_node(name, with_jobs)
    lost = time.time()

    def repair() -> None:
        with contextlib.suppress(FailedError):
            entry.wait("NODE_FAIL", lambda: entry.state != "RUNNING", 90)
        entry.pace(PACE)
        box.start_node(name)

    entry.repair = threading.Thread(target=repair)
    entry.repair.start()
    return lost


def first_node(entry: Entry) -> float:
    """the first node lost, with the batch shell"""
    return node(entry, "n1")


def slurmd(entry: Entry) -> float:
    """a slurmd killed, its processes live on"""
    return node(entry, "n2", with_jobs=False)


def cancel(entry: Entry) -> float:
    """`scancel`, then the same command"""
    entry.arena.lab.ask("scancel", entry.number)
    cancelled = time.time()
    entry.wait("the end", lambda: entry.state in OVER)
    entry.arena.again(entry)
    return cancelled


FAULTS: dict[str, Callable[[Entry], float]] = {
    each.__name__: each
    for each in (crash, hang, torn, spoiled, requeue, preempt, time_limit, node, first_node, slurmd, cancel)
}
NEEDS = {
    "diffcore": None,
    "submitit": None,
    "lightning": "pytorch_lightning",
    "torchrun": None,
    "nvrx": "nvidia_resiliency_ext",
}
"""Contender -> the package that it needs beside diffcore's own."""


def see_through(entry: Entry) -> str:
    """Wait until the job has an end; what it was: ``done``, Slurm's word, or ``hung``."""
    taken, heard, over = 0, time.monotonic(), None
    while True:
        now, state, count = time.monotonic(), entry.state, len(entry.passes())
        if count != taken:
            taken, heard = count, now
        if entry.final() and state == "COMPLETED":
            return "done"
        over = (over or now) if state in OVER else None
        if over and now - over > 10:  # it may be queued again
            return state
        if now - heard > PATIENCE:
            return f"hung, {state}"
        time.sleep(0.5)


def cell(arena: Arena, contender: str, fault: str | None, wanted: str | None) -> dict[str, Any]:
    """One run of a contender that meets a fault."""
    entry = arena.start(contender)
    moment = None
    try:
        if fault:
            # In the middle of an epoch, two checkpoints behind it.
            entry.wait("steps", lambda: entry.step >= 2 * EPOCH + 4)
            moment = FAULTS[fault](entry)
        outcome = see_through(entry)
    finally:
        if entry.state not in OVER:  # both nodes are the next one's
            arena.lab.ask("scancel", entry.number)
        if entry.repair:
            entry.repair.join()
    passes = entry.passes()
    told = chaos_lineage.lineage(passes, STEPS, EPOCH)
    stood = chaos_lineage.standstill(chaos_lineage.steps(passes), moment) if moment else None
    final = entry.final() if outcome == "done" else None
    return {
        "outcome": outcome,
        "standstill_s": round(stood, 1) if stood else None,
        "steps_again": told.again,
        "samples_twice": told.twice if final else None,
        "samples_never": told.never if final else None,
        "weights_from_nowhere": told.lost,
        "hit_while_writing": entry.hit,
        "final": final,
        "same_weights": final == wanted if final and wanted and fault else None,
    }


def table(cells: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Markdown: a row a fault, a column a contender."""
    contenders = list(cells)
    faults = [fault for fault in FAULTS if any(fault in row for row in cells.values())]
    lines = [f"| | {' | '.join(contenders)} |", "| --- " * (len(contenders) + 1) + "|"]
    for fault in faults:
        lines.append(
            f"| {FAULTS[fault].__doc__} | {' | '.join(_words(cells[c].get(fault)) for c in contenders)} |"
        )
    return "\n".join(lines)


def _words(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "failed" in found:
        return f"not measured: {found['failed']}"
    if found["outcome"] != "done":
        return f"**no** ({found['outcome']})"
    words = [] if found["standstill_s"] is None else [f"{found['standstill_s']} s"]
    words.append(f"{found['steps_again']} again")
    words.append(f"{found['samples_twice']} twice, {found['samples_never']} never")
    if found["same_weights"] is not None:
        words.append("same bits" if found["same_weights"] else "other weights")
    if found.get("hit_while_writing") is False:
        words.append("after the checkpoint's end")
    return ", ".join(words)


def prepare(lab: Lab) -> None:
    """Shards of exactly ``SAMPLES`` training images with labels of their own."""
    lab.prepare(SAMPLES, val=0)


def main() -> int:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument(
        "--only", nargs="*", choices=list(FAULTS), metavar="X", help=f"of {', '.join(FAULTS)}"
    )
    parser.add_argument("--with", nargs="+", dest="contenders", choices=list(NEEDS), metavar="C")
    parser.add_argument("--box", type=Path, help="a box that runs, instead of our own of two nodes")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, kept")
    parser.add_argument("--write", type=Path, help="put the table into this file")
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="JSON",
                        help="what earlier calls printed: their cells stand in the table too")  # fmt: skip
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the box goes down with us
    contenders = args.contenders or [
        c for c, need in NEEDS.items() if need is None or importlib.util.find_spec(need)
    ]
    for contender in contenders:
        if NEEDS[contender] and not importlib.util.find_spec(NEEDS[contender]):
            parser.error(f"--with {contender}: needs {NEEDS[contender]}, which is not installed")
    folder = args.keep or Path(tempfile.mkdtemp(prefix="chaos-"))
    folder.mkdir(exist_ok=True)
    cells: dict[str, dict[str, dict[str, Any]]] = {c: {} for c in contenders}
    begun = time.monotonic()
    with a_box(args.box) as box:
        lab = Lab(folder.resolve(), box)
        prepare(lab)
        arena = Arena(lab, iter(range(1000)))
        for contender in contenders:
            wanted = None
            for fault in [None, *(FAULTS if args.only is None else args.only)]:
                try:
                    found = cell(arena, contender, fault, wanted)
                except FailedError as error:
                    found = {"failed": str(error)}
                told = json.dumps({"contender": contender, "fault": fault} | found)
                print(told, f"(after {time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
                cells[contender][fault or "undisturbed"] = found
                if fault is None:
                    wanted = found.get("final")
    if not args.keep:
        shutil.rmtree(folder)
    for earlier in args.add:
        for contender, row in json.loads(earlier.read_text())["cells"].items():
            cells[contender] = row | cells.get(contender, {})
    if args.write:
        text = args.write.read_text()
        head, tail = text.split(BEGIN)[0], text.split(END)[1]
        args.write.write_text(f"{head}{BEGIN}\n\n{table(cells)}\n\n{END}{tail}")
    print(json.dumps({"steps": STEPS, "every": EPOCH, "cells": cells}, indent=1))
    return int(any("failed" in found for row in cells.values() for found in row.values()))


if __name__ == "__main__":
    sys.exit(main())
