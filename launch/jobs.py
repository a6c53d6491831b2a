"""python -m launch.jobs list|status|logs|cancel|goodput [RUN]: what became of submitted runs.

From the run folder and, where Slurm is at hand, from one squeue and one sacct for all jobs together. ``RUN``
is the run folder; without it, the newest submission of this user.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from diffbase import cli, ledger
from diffbase.cli import InputError, Parser
from diffbase.exits import DONE, PREEMPTED, RETRYABLE, may_retry
from diffbase.files import write_atomic
from launch import budget, query, registry
from launch.cluster import LOCAL
from launch.follow import every, tail
from launch.query import Job

OVER = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "STOPPED", "DEADLINE")
ASK_EVERY = 10.0
"""Seconds between two questions to Slurm: its controller answers everybody."""
FRESH = 60.0
"""Seconds within which a heartbeat says that training runs."""


@dataclass(frozen=True)
class Run:
    """A run folder's own account of itself."""

    folder: Path
    job: str
    name: str
    cluster: str
    logs: Path
    """Folder of the newest job's output."""
    events: list[dict[str, Any]]
    beat: dict[str, Any] | None

    @classmethod
    def read(cls, folder: Path) -> Run:
        """InputError if nothing was submitted there."""
        events = list(ledger.events(folder))
        submitted = [e for e in events if e["event"] == "submitted"]
        if not submitted:
            raise InputError(f"{folder}: nothing was submitted from there (no events.jsonl with a job)")
        last = submitted[-1]
        return cls(
            folder,
            str(last["job"]),
            str(last.get("name")),
            str(last["cluster"]),
            Path(last["folder"]),
            events,
            ledger.heartbeat(folder),
        )

    def log(self, rank: int) -> Path:
        return self.logs / f"{self.job}_{rank}_log.out"

    @property
    def steps(self) -> str:
        return f"{self.beat['step']}/{self.beat['steps']}" if self.beat else "-"

    def state(self, job: Job | None) -> str:
        """In one word: Slurm's, or what the folder tells."""
        if self.cluster == LOCAL and local_process(self.job):
            return "RUNNING"
        if job is not None:
            return job.state
        since = [e for e in self.events if str(e.get("job")) == self.job]
        ended = [e for e in since if e["event"] == "ended"]
        if self.beat and time.time() - float(self.beat["time"]) < FRESH and not ended:
            return "RUNNING"
        if not ended:
            return "PENDING" if all(e["event"] == "submitted" for e in since) else "UNKNOWN"
        names = {DONE: "COMPLETED", PREEMPTED: "STOPPED", RETRYABLE: "STOPPED"}
        return names.get(int(ended[-1]["code"]), "FAILED")


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="python -m launch.jobs", description="What became of submitted runs.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="this user's newest runs")
    for name, what in [
        ("status", "state, progress and what happened"),
        ("logs", "a rank's output"),
        ("cancel", "stop the job; what it can save in time is saved"),
        ("goodput", "where the time went: a table, and goodput.svg in the run folder"),
    ]:
        p = commands.add_parser(name, help=what)
        p.add_argument("run", nargs="?", type=Path, help="run folder (the newest submission)")
        if name == "logs":
            p.add_argument("--rank", type=int, default=0, help="rank (0)")
            p.add_argument("--follow", action="store_true", help="show what is added, until the job ends")
    flags = parser.parse_args(argv)
    if flags.command == "list":
        show_list()
        return
    run = Run.read(flags.run.resolve() if flags.run else newest())
    if flags.command == "status":
        show_status(run)
    elif flags.command == "logs":
        show_logs(run, flags.rank, flags.follow)
    elif flags.command == "cancel":
        cancel(run)
    else:
        show_goodput(run)


def newest() -> Path:
    known = registry.submissions()
    if not known:
        raise InputError("no submissions are known; give a run folder")
    return Path(known[-1]["run"])


def show_list() -> None:
    """One line a run, the newest submission last."""
    runs: dict[str, Run] = {}
    for entry in registry.submissions():
        runs.pop(entry["run"], None)  # a run stands where it was submitted last
        try:
            runs[entry["run"]] = Run.read(Path(entry["run"]))
        except (InputError, OSError):  # removed since
            continue
    states = query.ask({run.job: run.name for run in runs.values() if run.cluster != LOCAL})
    table = _table("job", "state", "step", "attempts", "cluster", "run")
    for run in runs.values():
        attempts = len({e["attempt"] for e in run.events if e["event"] == "started"})
        state = run.state(states.get(run.job))
        table.add_row(run.job, state, run.steps, str(attempts), run.cluster, str(run.folder))
    _print(table)


def show_status(run: Run) -> None:
    """State, how far, how often started, and the last things that happened."""
    job = query.ask({run.job: run.name}).get(run.job) if run.cluster != LOCAL else None
    table = _table("", "", header=False)
    table.add_row("run", str(run.folder))
    table.add_row(
        "job", f"{run.job} on {run.cluster}: {run.state(job)}{f' ({job.why})' if job and job.why else ''}"
    )
    if job and job.nodes:
        table.add_row("nodes", f"{job.nodes}, {job.elapsed}")
    if run.beat:
        ago = time.time() - float(run.beat["time"])
        table.add_row("step", f"{run.steps}, {run.beat['section']}, {_ago(ago)}")
    table.add_row("newest checkpoint", f"step {budget.newest_complete(run.folder)}")
    failures = sum(e["event"] == "ended" and int(e["code"]) not in (DONE, PREEMPTED) for e in run.events)
    stops = sum(e["event"] == "ended" and int(e["code"]) == PREEMPTED for e in run.events)
    attempts = len({e["attempt"] for e in run.events if e["event"] == "started"})
    table.add_row("attempts", f"{attempts} ({failures} failed, {stops} stopped and saved)")
    for e in run.events[-6:]:
        detail = " ".join(str(e[key]) for key in ("step", "why") if key in e)
        table.add_row(_ago(time.time() - float(e["time"])), f"attempt {e['attempt']}: {e['event']} {detail}")
    _print(table)


def show_logs(run: Run, rank: int, follow: bool) -> None:
    if follow:
        follow_run(run.folder, rank)
        return
    log = run.log(rank)
    if not log.exists():
        ranks = sorted(int(p.name.split("_")[-2]) for p in run.logs.glob(f"{run.job}_*_log.out"))
        known = f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "none yet"
        raise InputError(f"--rank {rank}: {log} is not there; there are: {known}")
    tail(log, ended=lambda: True)


def follow_run(folder: Path, rank: int) -> None:
    """Show a rank's output until the run's job is over, and its successor's if it has one."""
    shown = None
    while (run := Run.read(folder)).job != shown:
        shown = run.job
        tail(run.log(rank), ended=every(ASK_EVERY, partial(over, folder, run.job)))


def over(folder: Path, job: str) -> bool:
    """Whether ``job`` is over: in Slurm, or as the run folder tells."""
    run = Run.read(folder)
    if run.job != job:
        return True
    if run.cluster != LOCAL:
        ends = [e for e in run.events if e["event"] == "ended" and str(e.get("job")) == job]
        if ends and not may_retry(int(ends[-1]["code"])):
            return True  # without a question to Slurm
    told = query.ask({job: run.name}).get(job) if run.cluster != LOCAL else None
    return run.state(told).split()[0] in OVER


def cancel(run: Run) -> None:
    """SIGTERM, which has every rank save; Slurm kills what is left after its KillWait."""
    if run.cluster == LOCAL:
        if not local_process(run.job):
            raise InputError(f"local job {run.job} does not run any more")
        os.kill(int(run.job), signal.SIGTERM)
    else:
        # By number and name: the number alone may be another cluster's, or another person's by now.
        told = query.ask({run.job: run.name}).get(run.job)
        if told is None or told.state in OVER:
            state = f"is {told.state}" if told else "is not known to Slurm here (squeue, sacct)"
            raise InputError(f"job {run.job} {state}")
        done = subprocess.run(["scancel", run.job], capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise InputError(f"scancel: {done.stderr.strip()}")
    print(f"job {run.job} is told to stop; the same submission goes on from the newest checkpoint")


def show_goodput(run: Run) -> None:
    from launch import goodput

    attempts = goodput.account(run.events, run.beat)
    if not attempts:
        raise InputError(f"{run.folder}: no attempt was started yet")
    table = _table("attempt", "ended", *goodput.KINDS, "total")
    for a in attempts:
        cells = [f"{a.seconds[kind]:.1f}" for kind in goodput.KINDS]
        table.add_row(str(a.number), a.outcome, *cells, f"{a.total:.1f}")
    sums = [sum(a.seconds[kind] for a in attempts) for kind in goodput.KINDS]
    total = sum(sums)
    table.add_section()
    table.add_row("all", "seconds", *(f"{value:.1f}" for value in sums), f"{total:.1f}")
    table.add_row("", "share", *(f"{value / total:.1%}" if total else "-" for value in sums), "100%")
    _print(table)
    kept, whole = goodput.share(attempts), goodput.share(attempts, waiting=True)
    print(f"goodput: {kept:.1%} of the time on the nodes, {whole:.1%} with the queue")
    picture = run.folder / "goodput.svg"
    write_atomic(picture, goodput.svg(attempts, f"{run.folder.name}: goodput {kept:.1%}").encode())
    print(f"picture: {picture}")


def local_process(job: str) -> bool:
    """Whether a local job's controller runs; another process may have its number by now."""
    try:
        return b"submitit.local" in Path(f"/proc/{job}/cmdline").read_bytes()
    except OSError:
        return False


def _ago(seconds: float) -> str:
    for size, unit in [(86400, "d"), (3600, "h"), (60, "min")]:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"


def _table(*columns: str, header: bool = True) -> Any:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, show_header=header)
    for column in columns:
        # Paths and numbers are for copying: they are never cut off.
        table.add_column(column, overflow="fold", no_wrap=False)
    return table


def _print(table: Any) -> None:
    import sys

    from rich.console import Console

    # A pipe has no width: rows are not broken there.
    Console(width=None if sys.stdout.isatty() else 250).print(table)


if __name__ == "__main__":
    cli.run(main)
