"""Making the job's folder and handing the job to Slurm, to an allocation, or to this machine."""

from __future__ import annotations

import os
import shlex
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.files import write_atomic
from diffbase.line import printable, say
from diffbase.trust import is_shown
from diffcore.memory import promise
from diffcore.runs import run_folder
from launch.ask.profile import LOCAL
from launch.ask.request import fingerprint_of
from launch.ask.spec import JobSpec
from launch.ask.sweep import Point
from launch.follow.points import FILE as SWEEP
from launch.follow.points import points as sweep_points
from launch.follow.run import Run, local_process
from launch.follow.tail import follow_run, hint, show_points
from launch.hand_over import allocation, local
from launch.hand_over.undo import undone_if_refused
from launch.job import folder
from launch.job.code import copy_code
from launch.job.entry import last_code, record
from launch.job.folder import Place
from launch.job.sbatch import Sbatch
from launch.scheduler import client, query
from launch.scheduler.client import LIVING
from launch.supervise.task import Task


def text(points: Sequence[Point], spec: JobSpec, run: Path) -> str:
    """The file that ``submit`` would submit now, or what it would start on this machine."""
    place = folder.next_place(run)
    if spec.cluster.is_local:
        return f"{spec.world} processes on this machine, run folder {run}, output in {place.folder}\n"
    return Sbatch(spec, place.folder, place.code).text(len(points) if _is_sweep(points) else None)


def test_only(points: Sequence[Point], spec: JobSpec, run: Path) -> str:
    """Slurm's answer to when the job would start."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(text(points, spec, run))
        script.flush()
        return client.when_it_would_start(Path(script.name))


def carry_out(
    flags: Namespace,
    points: Sequence[Point],
    spec: JobSpec,
    run: Path,
    here: bool,
    give: Callable[[Any], None],
    promised: Mapping[str, Any] | None = None,
) -> int:
    """What ``--dry-run``, ``--test-only`` or neither asks for, told to ``give`` too; the exit code.

    ``promised``: what ``--auto`` promises, which is kept in the run folder.
    """
    if not (flags.dry_run or flags.test_only):
        return submit(points, spec, run, here, flags.follow, give if flags.json else None, promised)
    said = text(points, spec, run) if flags.dry_run else test_only(points, spec, run)
    say(said, end="" if flags.dry_run else "\n")
    tree = asked(points, spec, run) | {"dry_run" if flags.dry_run else "test_only": said}
    give(tree | ({"auto": promised} if promised else {}))
    return 0


def asked(points: Sequence[Point], spec: JobSpec, run: Path) -> dict[str, Any]:
    """What is asked for, for programs; ``points`` are a sweep's."""
    rows: list[dict[str, Any]] = [
        {"run": str(point.config.run), "values": dict(point.values)} for point in points
    ]
    return {
        "run": str(run), "name": spec.job, "cluster": spec.cluster.name, "nodes": spec.nodes,
        "nodes_min": spec.nodes_min, "tasks_per_node": spec.tasks_per_node,
        "points": rows if _is_sweep(points) else [],
    }  # fmt: skip


def submit(
    points: Sequence[Point],
    spec: JobSpec,
    run: Path,
    here: bool,
    follow: bool,
    give: Callable[[Any], None] | None = None,
    promised: Mapping[str, Any] | None = None,
) -> int:
    """Submit; returns the exit code for the shell: the job's, if it was followed.

    ``give`` gets ``asked`` with the jobs' numbers and the job's folder; standard output is then for it alone.
    """
    os.umask(0o077)
    usual = spec.cluster.run_access
    sweeps = _is_sweep(points)
    with undone_if_refused([run, *(point.config.run for point in points)]) as made:
        place = folder.create(run, spec.group, points[0].config.run_access, usual)
        made.append(place.folder)
        copy_code(place.code)
        places = [place]
        if sweeps:
            places = []
            for point in points:
                access = point.config.run_access
                places.append(folder.create(point.config.run, spec.group, access, usual))
                made.append(places[-1].folder)
            folder.write_spec(place, spec)
            rows = [f"{i:03d} {dict(point.values)}" for i, point in enumerate(points)]
            listed = "\n".join(rows) + "\n"
            write_atomic(place.folder / SWEEP, listed.encode())
            if is_shown(place.folder):
                (place.folder / SWEEP).chmod(run_folder.settings_mode(listed))
        for point, own in zip(points, places, strict=True):
            seen = fingerprint_of(point.config.data.path)
            folder.fill(own, point.config, spec.model_copy(update={"fingerprint": seen}), os.environ)
        tasks = [Task(str(own.folder), str(place.code)) for own in places]
        jobs = [] if spec.cluster.is_local or here else hand_over(spec, place, tasks, array=sweeps)

    tree = asked(points, spec, run) | {"folder": str(place.folder)}
    if promised:
        tree["auto"] = promised
        promise.write(run, promised)
    if spec.cluster.is_local:
        code, job = local.start(place, spec, tasks[0], follow)
    elif here:
        code, job = allocation.run(place, spec, tasks[0], follow, errors_only=give is not None)
    if spec.cluster.is_local or here:
        if give is not None:
            give(tree | {"job": job})
        return code
    for own, job in zip(places, jobs, strict=True):
        record(own, place, spec, job, listed=not sweeps)
    if sweeps:  # the sweep's own folder knows the array, and stands for its points in the user's list
        record(place, place, spec, jobs[0].split("_")[0])
    if give is not None:
        for row, job in zip(tree["points"], jobs, strict=False):  # none of a run alone
            row["job"] = job
        give(tree | {"job": jobs[0].split("_")[0]})
    many = f"{len(jobs)} x " if len(jobs) > 1 else ""
    size = f"{spec.nodes} nodes x {spec.tasks_per_node} ranks on {spec.cluster.name}"
    print(printable(f"job {jobs[0].split('_')[0]}: {many}{size}, run folder {run}"))
    say(hint(run))
    if not follow:
        return 0
    if sweeps:
        show_points(sweep_points(Run.read(run)), 0, follow=True)
    else:
        follow_run(run, 0)
    return max(last_code(own.run) for own in places)


def refuse_second(run: Path, spec: JobSpec) -> None:
    """InputError if the run's newest job is not over: two must not write into one run folder."""
    submitted = [e for e in ledger.events(run) if e["event"] == "submitted"]
    if not submitted or spec.after == (job := str(submitted[-1]["job"])):
        return
    if submitted[-1]["cluster"] == LOCAL:
        state = "RUNNING" if local_process(job) else ""
    else:
        known = query.ask({job: str(submitted[-1].get("name"))}).get(job)
        state = known.state if known else ""  # unknown to Slurm: long over
    if state in LIVING:
        raise InputError(
            f"{run}: job {job} of this run is {state}: cancel it (python -m launch.jobs cancel "
            f"{shlex.quote(str(run))}), or let this one follow with --after {job}"
        )


def hand_over(spec: JobSpec, place: Place, tasks: Sequence[Task], array: bool = False) -> list[str]:
    """sbatch, through submitit; returns the jobs' numbers. InputError with sbatch's own line."""
    executor = Sbatch(spec, place.folder, place.code)
    try:
        jobs = executor.submit_array(tasks) if array else [executor.submit(tasks[0])]
    except (FailedJobError, FileNotFoundError) as error:
        line = str(error).strip() or "there is no sbatch here"
        raise InputError(f"sbatch: {line.removeprefix('sbatch: error: ')}") from error
    return [str(job.job_id) for job in jobs]


def _is_sweep(points: Sequence[Point]) -> bool:
    return any(point.values for point in points)
