"""Runs and their jobs on the terminal."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffbase.cli import InputError, one_line
from diffbase.exits import DONE, PREEMPTED
from diffbase.files import write_atomic
from diffbase.line import printable
from diffbase.tables import TextTable
from launch.ask.profile import LOCAL
from launch.follow import goodput
from launch.follow.interval import interval
from launch.follow.run import Run, follow_run
from launch.follow.tail import tail
from launch.job import registry
from launch.scheduler import query
from launch.supervise.decide import budget

PIPE = 250
"""Columns of a pipe, which has no width: rows are not broken there."""

UNREADABLE = "UNREADABLE"


@dataclass(frozen=True)
class Unreadable:
    """A run of the list whose folder does not say what became of it: it has its row, with the reason."""

    job: str
    cluster: str
    folder: Path
    why: str


def show_list() -> list[dict[str, Any]]:
    """One line per run, the newest submission last; returns the same."""
    runs: dict[str, Run | Unreadable] = {}
    for entry in registry.submissions():
        runs.pop(entry["run"], None)  # a run stands where it was submitted last
        try:
            folder = Path(entry["run"])
            if folder.exists():  # else it was removed since
                runs[entry["run"]] = Run.read(folder)
        except (InputError, OSError) as error:
            why = f"{error.strerror or error}" if isinstance(error, OSError) else str(error)
            runs[entry["run"]] = Unreadable(entry["job"], entry["cluster"], folder, why)
    known = [run for run in runs.values() if isinstance(run, Run) and run.cluster != LOCAL]
    states = query.ask({run.job: run.name for run in known})
    table = TextTable("", "job", "state", "step", "attempts", "cluster", "run", text=range(6), plain=True)
    rows: list[dict[str, Any]] = []
    row: dict[str, Any]
    for run in runs.values():
        if isinstance(run, Unreadable):
            table.add_row(run.job, UNREADABLE, "-", "-", run.cluster, f"{run.folder} ({run.why})")
            row = {"job": run.job, "state": UNREADABLE, "attempts": None, "cluster": run.cluster}
            rows.append(row | {"run": str(run.folder), "step": None, "steps": None, "damage": run.why})
            continue
        attempts = len({e["attempt"] for e in run.events if e["event"] == "started"})
        state, note = run.state(states.get(run.job)), f" ({run.damage})" if run.damage else ""
        table.add_row(run.job, state, run.steps, str(attempts), run.cluster, str(run.folder) + note)
        row = {"job": run.job, "state": state, "attempts": attempts, "cluster": run.cluster}
        rows.append(row | {"run": str(run.folder), **_progress(run), "damage": run.damage})
    table.print(width=PIPE)
    return rows


def _progress(run: Run) -> dict[str, Any]:
    """How far, as of the newest heartbeat; None without one."""
    return {name: run.beat[name] if run.beat else None for name in ("step", "steps")}


def show_status(run: Run) -> dict[str, Any]:
    """State, how far, how often started, and the last things that happened; returns the same."""
    job = query.ask({run.job: run.name}).get(run.job) if run.cluster != LOCAL else None
    table = TextTable("", "", "", text=range(2), plain=True)
    table.add_row("run", str(run.folder))
    state = run.state(job)
    why = f" ({job.why})" if job and job.why else ""
    table.add_row("job", f"{run.job} on {run.cluster}: {state}{why}")
    if job and job.nodes:
        table.add_row("nodes", f"{job.nodes}, {job.elapsed}")
    if run.beat:
        ago = time.time() - float(run.beat["time"])
        table.add_row("step", f"{run.steps}, {run.beat['section']}, {_ago(ago)}")
    if run.damage:
        table.add_row("damaged", run.damage)
    saved = budget.newest_complete(run.folder)
    table.add_row("newest checkpoint", f"step {saved}")
    failures = sum(e["event"] == "ended" and int(e["code"]) not in (DONE, PREEMPTED) for e in run.events)
    stops = sum(e["event"] == "ended" and int(e["code"]) == PREEMPTED for e in run.events)
    attempts = len({e["attempt"] for e in run.events if e["event"] == "started"})
    table.add_row("attempts", f"{attempts} ({failures} failed, {stops} stopped and saved)")
    for e in run.events[-6:]:
        detail = one_line(" ".join(str(e[key]) for key in ("step", "why") if key in e))
        table.add_row(_ago(time.time() - float(e["time"])), f"attempt {e['attempt']}: {e['event']} {detail}")
    table.print(width=PIPE)
    return {
        "run": str(run.folder), "job": run.job, "cluster": run.cluster, "state": state,
        "why": job.why if job else None, "nodes": job.nodes if job else None, **_progress(run),
        "checkpoint": saved, "attempts": attempts, "failed": failures, "stopped": stops,
        "damage": run.damage,
        "events": run.events[-6:],
    }  # fmt: skip


def show_logs(run: Run, rank: int, follow: bool) -> None:
    """A rank's output; ``follow``: until the job ends."""
    if follow:
        follow_run(run.folder, rank)
        return
    log = run.log(rank)
    if not log.exists():
        names = (p.name.split("_")[-2] for p in run.logs.glob(f"{run.job}_*_log.out"))
        ranks = sorted(int(name) for name in names if name.isascii() and name.isdigit())
        known = f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "none yet"
        raise InputError(f"--rank {rank}: {log} is not there; there are: {known}")
    tail(log, ended=lambda: True)


def show_goodput(run: Run) -> dict[str, Any]:
    """Where the time went: a table, and goodput.svg in the run folder; returns seconds and shares."""
    attempts = goodput.account(run.events, run.beat)
    if not attempts:
        raise InputError(f"{run.folder}: no attempt was started yet")
    table = TextTable("", "attempt", "ended", *goodput.KINDS, "total", text=range(2), plain=True)
    for a in attempts:
        cells = [f"{a.seconds[kind]:.1f}" for kind in goodput.KINDS]
        table.add_row(str(a.number), a.outcome, *cells, f"{a.total:.1f}")
    sums = [sum(a.seconds[kind] for a in attempts) for kind in goodput.KINDS]
    total = sum(sums)
    table.add_section()
    table.add_row("all", "seconds", *(f"{value:.1f}" for value in sums), f"{total:.1f}")
    table.add_row("", "share", *(f"{value / total:.1%}" if total else "-" for value in sums), "100%")
    table.print(width=PIPE)
    kept, whole = goodput.share(attempts), goodput.share(attempts, waiting=True)
    print(f"goodput: {kept:.1%} of the time on the nodes, {whole:.1%} with the queue")
    between = interval(attempts, run.events)
    if between is not None:
        print(between)
    picture = run.folder / "goodput.svg"
    write_atomic(picture, goodput.svg(attempts, f"{run.folder.name}: goodput {kept:.1%}").encode())
    print(f"picture: {printable(str(picture))}")
    seconds = [{"attempt": a.number, "ended": a.outcome, **a.seconds} for a in attempts]
    told = {"goodput": kept, "with_queue": whole, "attempts": seconds, "picture": str(picture)}
    return told | ({} if between is None else {"checkpoints": asdict(between)})


def _ago(seconds: float) -> str:
    for size, unit in [(86400, "d"), (3600, "h"), (60, "min")]:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{max(seconds, 0):.0f} s ago"
