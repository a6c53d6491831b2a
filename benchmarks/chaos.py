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
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import chaos_lineage
from benchmarks.job_lab import FailedError, Lab, a_box

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = REPOSITORY / "benchmarks/peers"
BEGIN, END = "<!-- chaos: begin -->", "<!-- chaos: end -->"
STEPS, EPOCH, SAMPLES = 100, 10, 80
PACE = 0.15
"""Seconds that each step takes at least."""
PATIENCE = 240.0
"""Seconds without a step after which a contender counts as hung."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
CONFIG = f"""
seed: 3
data: {{path: PACKED}}
model: {{kind: avatar, channels: [64, 128], attention_levels: [1], heads: 2, tau_tokens: 2}}
diffusion: {{schedule: cosine, timesteps: 100, target: eps, label_dropout: 0}}
optimizer: {{lr: 1.0e-3, weight_decay: 0.01}}
batch: {{size: {SAMPLES // EPOCH}}}
engine: {{zero: 0, threads: 1}}
ema: {{decay: 0.9}}
guards: {{hang_seconds: 20}}
train: {{steps: {STEPS}, log_every: 1, checkpoint_every: {EPOCH}, deterministic: true}}
sampling: {{every: 100000, count: 4, steps: 2, guidance: 1}}
"""


@dataclass
class Entry:
    """One contender's run of the training."""

    arena: Arena
    contender: str
    run: Path
    number: str = ""
    repair: threading.Thread | None = None
    """What brings a lost node back."""
    hit: bool | None = None
    """Of ``torn``: whether the kill came before the checkpoint's end."""

    @property
    def trace(self) -> Path:
        return self.run.with_name(f"{self.run.name}.trace")

    @property
    def state(self) -> str:
        return self.arena.lab.ask("squeue", "--states=all", "-h", "-o", "%T", "-j", self.number) or "UNKNOWN"

    def passes(self) -> list[chaos_lineage.Pass]:
        return chaos_lineage.read(self.trace)

    @property
    def step(self) -> int:
        """The last step that was begun."""
        return max((s.number or 0 for s in chaos_lineage.steps(self.passes())), default=0)

    def pid(self, rank: int) -> int:
        """The newest process of a rank that has taken a step."""
        return [one for one in self.passes() if one.rank == rank][-1].pid

    def pace(self, seconds: float) -> None:
        (self.trace / "pace").write_text(str(seconds))

    def saved(self) -> list[Path]:
        """Files of the checkpoints and of what is being written, the newest last."""
        suffixes = (".pt", ".ckpt", ".safetensors")
        # diffcore's run folder holds the job's code too: to look through that gives its writes a head start.
        folder = self.run / "checkpoints" if self.contender == "diffcore" else self.run
        found = []
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.suffix in suffixes and path.is_file() and path.name != "final.safetensors":
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def unfinished(self, path: Path) -> bool:
        """Whether the checkpoint of this file lacks its end: a COMPLETE, or a zip's directory."""
        if self.contender == "diffcore":
            return not (path.parent / "COMPLETE").exists()
        return not zipfile.is_zipfile(path)

    def final(self) -> str | None:
        """A digest of the final weights; None while there are none."""
        last = self.run / f"checkpoints/step-{STEPS:08d}"
        files = [self.run / "final.safetensors"]
        if self.contender == "diffcore":
            files = sorted(last.glob("*.safetensors")) if (last / "COMPLETE").exists() else []
        if not files or not all(path.exists() for path in files):
            return None
        return hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in files)).hexdigest()

    def wait(self, what: str, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise FailedError(f"{self.run.name}: waited {seconds:.0f} s for {what}; job is {self.state}")
            time.sleep(0.1)


@dataclass
class Arena:
    """A lab, and how each contender is started in it."""

    lab: Lab
    names: Iterator[int]

    def start(self, contender: str) -> Entry:
        run = self.lab.folder / f"{contender}-{next(self.names)}"
        entry = Entry(self, contender, run)
        entry.trace.mkdir()
        entry.pace(PACE)
        if contender != "diffcore":
            run.mkdir()
        (self.lab.folder / f"{run.name}.yaml").write_text(
            CONFIG.replace("PACKED", str(self.lab.folder / "packed")) + f"run: {run}\n"
        )
        self.again(entry)
        return entry

    def again(self, entry: Entry) -> None:
        """The contender's command, given by its user."""
        config = self.lab.folder / f"{entry.run.name}.yaml"
        env = self.lab.box.env | {
            "XDG_STATE_HOME": str(self.lab.folder / "state"), "OMP_NUM_THREADS": "1",
            "CHAOS_TRACE": str(entry.trace), "CHAOS_CONFIG": str(config), "CHAOS_RUN": str(entry.run),
            "CHAOS_PYTHON": sys.executable, "CHAOS_PEERS": str(PEERS),
        }  # fmt: skip
        if entry.contender == "diffcore":
            profile = self.lab.folder / f"{entry.run.name}-box.yaml"
            export = f"export CHAOS_TRACE={entry.trace} PYTHONPATH={PEERS}"
            profile.write_text(f"{(self.lab.folder / 'box.yaml').read_text()}\nsetup: ['{export}']\n")
            command = [
                REPOSITORY / "launch/submit.py",
                "--config",
                config,
                "--cluster",
                profile,
                "--nodes",
                "2",
            ]
        elif entry.contender == "submitit":
            command = [PEERS / "by_submitit.py", config, entry.run]
        else:
            output = ["--parsable", f"--output={entry.run}/%j_%t.out", f"--job-name={entry.contender}"]
            command = [PEERS / f"{entry.contender}.sbatch"]
        program = [sys.executable] if entry.contender in ("diffcore", "submitit") else ["sbatch", *output]
        done = subprocess.run(
            [*program, *map(str, command)],
            env=env, cwd=self.lab.folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise FailedError(f"{entry.run.name}: {done.stderr.strip()}")
        if entry.contender == "diffcore":
            events = (entry.run / "events.jsonl").read_text().splitlines()
            jobs = [e["job"] for e in map(json.loads, events) if e["event"] == "submitted"]
            entry.number = str(jobs[-1])
        else:
            entry.number = done.stdout.split()[-1]


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
