"""Runs and their jobs on the terminal: each command's words, and the same as a tree for JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from errno import EACCES, EPERM, EROFS
from pathlib import Path
from typing import Any

from diffbase.cli import InputError, one_line
from diffbase.files import write_atomic
from diffbase.line import say
from diffbase.tables import Block, TextTable, show
from diffcore.memory import promise
from diffcore.runs.figures import spent_words
from launch.follow import goodput
from launch.follow.faults import faults, others
from launch.follow.glance import Glance, clock, fault_words, glance, of_steps, of_sweep, rate_words, since
from launch.follow.interval import interval
from launch.follow.points import Point, Unreadable, points, read
from launch.follow.run import Run
from launch.follow.tail import follow_run, show_points, tail
from launch.job import registry
from launch.scheduler import query
from launch.scheduler.query import Known

FAULTS, OTHERS = 6, 4
"""Of the newest, that are shown."""
SLOW = 4
"""Ranks that are named, the slowest first."""

Ask = Callable[[Sequence[Run | Unreadable]], Known]


def ask(runs: Sequence[Run | Unreadable]) -> Known:
    """One question to Slurm for all of these runs' jobs."""
    return query.ask({run.job: run.name for run in runs if isinstance(run, Run) and run.asks_slurm})


def newest_runs() -> list[tuple[Run | Unreadable, list[Point]]]:
    """This user's, the newest submission last: a sweep stands for its points, which come with it."""
    found: dict[str, tuple[Run | Unreadable, list[Point]]] = {}
    for entry in registry.submissions():
        found.pop(entry["run"], None)  # a run stands where it was submitted last
        try:
            folder = Path(entry["run"])
            if not folder.exists():  # it was removed since
                continue
        except OSError as error:
            run: Run | Unreadable = Unreadable(
                entry["job"], entry["cluster"], folder, f"{error.strerror or error}"
            )
        else:
            run = read(folder, entry["job"], entry["cluster"])
        found[entry["run"]] = run, points(run) if isinstance(run, Run) else []
    of_sweeps = {str(point.folder) for _, own in found.values() for point in own}
    return [one for name, one in found.items() if name not in of_sweeps]


def see_list(ask: Ask = ask) -> tuple[list[Block], list[dict[str, Any]], list[str]]:
    """One line per run, below a sweep's one per point: what to show, trees, and the runs' conditions."""
    runs = newest_runs()
    inner = [[read(point.folder) for point in own] for _, own in runs]
    known = ask([*(run for run, _ in runs), *(run for own in inner for run in own)])
    table, trees, words = _lines(), [], []
    for (run, own), there in zip(runs, inner, strict=True):
        of_points = [glance(one, known) for one in there]
        at = of_sweep(glance(run, known), of_points)
        _line(table, at)
        for point, one in zip(own, of_points, strict=True):
            _line(table, one, name=f"  {point.name} {point.values}")
        trees.append(at.tree() | {"points": _trees(own, of_points)})
        words.append(at.condition)
    return [table], trees, words


def see_status(runs: Sequence[Path], ask: Ask = ask) -> tuple[list[Block], Any, list[str]]:
    """Of one run what happened; of several, and of a sweep's points, a line each. As ``see_list``.

    InputError for a folder in which nothing was submitted, and nothing trained.
    """
    found = [Run.read(folder) for folder in runs]
    inner = [points(run) for run in found]
    there = [[read(point.folder) for point in own] for own in inner]
    known = ask([*found, *(run for own in there for run in own)])
    trees, words, blocks, table = [], [], list[Block](), _lines()
    for run, own, read_points in zip(found, inner, there, strict=True):
        of_points = [glance(one, known) for one in read_points]
        at = of_sweep(glance(run, known), of_points)
        events: dict[str, Any] = {
            "events": run.events[-6:],
            "faults": [asdict(f) for f in faults(run.events)[-FAULTS:]],
        }
        events["promise"] = promise.beside(run.folder)
        trees.append(at.tree() | events | {"points": _trees(own, of_points)})
        words.append(at.condition)
        if len(found) > 1 or own:
            _line(table, at)
            for point, one in zip(own, of_points, strict=True):
                _line(table, one, name=f"  {point.name} {point.values}")
            blocks = [table]
        else:
            blocks = _detail(run, at)
    return blocks, trees if len(trees) > 1 else trees[0], words


def _trees(own: Sequence[Point], of_points: Sequence[Glance]) -> list[dict[str, Any]]:
    return [
        one.tree() | {"point": point.name, "values": point.values}
        for point, one in zip(own, of_points, strict=True)
    ]


def _lines() -> TextTable:
    headings = ("job", "state", "step", "rate", "left", "goodput", "attempts", "cluster", "run", "last fault")
    return TextTable("", *headings, text=(0, 1, 2, 7, 8, 9), plain=True)


def _line(table: TextTable, at: Glance, name: str = "") -> None:
    note = f" ({at.damage})" if at.damage else ""
    attempts = "-" if at.attempts is None else str(at.attempts)
    table.add_row(
        at.job or "-", at.state, of_steps(at), rate_words(at.rate),
        "-" if at.left is None else clock(at.left),
        "-" if at.goodput is None else f"{at.goodput:.1%}", attempts, at.cluster, (name or at.run) + note,
        fault_words(at.fault),
    )  # fmt: skip


def _detail(run: Run, at: Glance) -> list[Block]:
    table = TextTable("", "", "", text=range(2), plain=True)
    table.add_row("run", at.run)
    why = f" ({at.why})" if at.why else ""
    table.add_row(
        "job", f"{at.job or '-'} on {at.cluster}: {at.state}{why}" if at.job else f"by hand: {at.state}"
    )
    if at.nodes:
        table.add_row("nodes", f"{at.nodes}, {at.elapsed}")
    if at.step is not None:
        left = "" if at.left is None else f", {clock(at.left)} left"
        heard = "" if at.heard is None else f", {at.section}, {since(at.heard)}"
        table.add_row("step", f"{of_steps(at)}, {rate_words(at.rate)}{left}{heard}")
    if at.spent:
        table.add_row("spent", spent_words(at.spent))
    if at.damage:
        table.add_row("damaged", at.damage)
    table.add_row("newest checkpoint", f"step {at.checkpoint}" if at.checkpoint else "none yet")
    table.add_row("attempts", f"{at.attempts} ({at.failed} failed, {at.stopped} stopped)")
    table.add_row("goodput", "-" if at.goodput is None else f"{at.goodput:.1%} of the time on the nodes")
    table.add_row("last fault", fault_words(at.fault))
    for name, words in promise.rows(kept).items() if (kept := promise.beside(run.folder)) else ():
        table.add_row(name, words)
    if at.slow:
        slowest = sorted(at.slow.items(), key=lambda one: -one[1])[:SLOW]
        more = f" and {len(at.slow) - SLOW} more" if len(at.slow) > SLOW else ""
        told = ", ".join(f"rank {rank} takes {ratio:.1f} times its peers' time" for rank, ratio in slowest)
        table.add_row("slow", told + more)
    blocks: list[Block] = [table]
    if found := faults(run.events)[-FAULTS:]:
        wrong = TextTable("", "what failed", "", "", text=range(3), plain=True)
        for fault in found:
            place = "" if fault.step is None else f" at step {fault.step}"
            node = f" on {fault.node}" if fault.node else ""
            kind = f"attempt {fault.attempt}: {fault.kind}{node}{place}"
            wrong.add_row(since(fault.time), kind, one_line(fault.why))
        blocks.append(wrong)
    lately = TextTable("", "what else happened", "", text=range(2), plain=True)
    for number, e in others(run.events)[-OTHERS:]:
        detail = one_line(" ".join(str(e[key]) for key in ("step", "why") if e.get(key) is not None))
        lately.add_row(since(float(e["time"])), f"attempt {number}: {e['event']} {detail}")
    return [*blocks, lately]


def show_cancelled(run: Run) -> dict[str, Any]:
    """What ``cancel`` has asked for, in words; returns the same."""
    say(f"job {run.job} was asked to stop; the same submission goes on from the newest checkpoint")
    return {"run": str(run.folder), "job": run.job, "cluster": run.cluster, "asked": True}


def show_logs(run: Run, rank: int, follow: bool, told: bool = False) -> dict[str, Any]:
    """A rank's output; ``follow``: until the job ends. Returns where it is; ``told``: and shows nothing.

    InputError for a rank that has none.
    """
    own = points(run)
    path = None if own else run.log(rank)
    if not told and own:
        show_points(own, rank, follow)
    elif not told and follow:
        follow_run(run.folder, rank)
    elif path is not None:
        _show_log(run, rank, path, told)
    runs = [there for point in own if isinstance(there := read(point.folder), Run)]
    return {
        "run": str(run.folder), "job": run.job, "rank": rank, "log": None if path is None else str(path),
        "points": [{"point": there.folder.name, "log": str(there.log(rank))} for there in runs],
    }  # fmt: skip


def _show_log(run: Run, rank: int, log: Path, told: bool) -> None:
    if not log.exists():
        names = (p.name.split("_")[-2] for p in run.logs.glob(f"{run.job}_*_log.out"))
        ranks = sorted(int(name) for name in names if name.isascii() and name.isdigit())
        known = f"ranks {ranks[0]} to {ranks[-1]}" if ranks else "none yet"
        raise InputError(f"--rank {rank}: {log} is not there; there are: {known}")
    if not told:
        tail(log, ended=lambda: True)


def show_goodput(run: Run) -> dict[str, Any]:
    """Where the time went, of a sweep by points: a table, and goodput.svg in each run folder.

    Returns seconds and shares. InputError where nothing was started yet.
    """
    if own := points(run):
        return _goodput_of_points(run, own)
    return goodput_of(run)


def goodput_of(run: Run) -> dict[str, Any]:
    """Of one run alone: by attempts."""
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
    table.print()
    kept, whole = goodput.share(attempts), goodput.share(attempts, waiting=True)
    print(f"goodput: {kept:.1%} of the time on the nodes, {whole:.1%} with the queue")
    between = interval(attempts, run.events)
    if between is not None:
        say(between.words(run.folder))
    picture = _draw(run, attempts)
    say(f"picture: {picture}" if picture else f"no picture: {run.folder} is not this user's to write in")
    seconds = [{"attempt": a.number, "ended": a.outcome, **a.seconds} for a in attempts]
    told = {"run": str(run.folder), "goodput": kept, "with_queue": whole, "attempts": seconds}
    told |= {"picture": picture and str(picture), "points": []}
    return told | {"checkpoints": None if between is None else asdict(between)}


def _draw(run: Run, attempts: Sequence[goodput.Attempt]) -> Path | None:
    """The picture in the run folder; None for whoever may only read there."""
    picture = run.folder / "goodput.svg"
    title = f"{run.folder.name}: goodput {goodput.share(attempts):.1%}"
    try:
        write_atomic(picture, goodput.svg(attempts, title).encode())
    except OSError as error:
        if error.errno not in (EACCES, EPERM, EROFS):
            raise
        return None
    return picture


def _goodput_of_points(run: Run, own: Sequence[Point]) -> dict[str, Any]:
    table = TextTable("", "point", *goodput.KINDS, "total", "goodput", "values", text=(0, 11), plain=True)
    everything: list[goodput.Attempt] = []
    trees: list[dict[str, Any]] = []
    for point in own:
        there = read(point.folder)
        attempts = goodput.account(there.events, there.beat) if isinstance(there, Run) else []
        if not isinstance(there, Run) or not attempts:
            table.add_row(point.name, *"-" * (len(goodput.KINDS) + 2), point.values)
            continue
        everything += attempts
        sums = {kind: sum(a.seconds[kind] for a in attempts) for kind in goodput.KINDS}
        kept = goodput.share(attempts)
        cells = [f"{value:.1f}" for value in (*sums.values(), sum(sums.values()))]
        table.add_row(point.name, *cells, f"{kept:.1%}", point.values)
        trees.append({"point": point.name, "values": point.values, "goodput": kept, **sums})
        _draw(there, attempts)
    if not everything:
        raise InputError(f"{run.folder}: no attempt was started yet")
    show([table])
    kept, whole = goodput.share(everything), goodput.share(everything, waiting=True)
    print(f"goodput: {kept:.1%} of the time on the nodes, {whole:.1%} with the queue")
    told: dict[str, Any] = {"run": str(run.folder), "goodput": kept, "with_queue": whole, "points": trees}
    return told | {"attempts": [], "picture": None, "checkpoints": None}
