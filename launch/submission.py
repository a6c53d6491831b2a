"""Making the job's folder and handing the job to Slurm, to an allocation, or to this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, environment_variables

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.files import write_atomic
from launch import query, registry, snapshot
from launch.cluster import LOCAL
from launch.env import SHOWN
from launch.follow import tail
from launch.jobs import follow_run, local_process
from launch.requeue import LIVING
from launch.sbatch import UNLIMITED, Sbatch
from launch.snapshot import Place
from launch.spec import JobSpec
from launch.sweep import Point
from launch.task import Task

WITHOUT_LIMIT = 60 * 24 * 365  # minutes; on one machine nobody waits in a queue


def text(points: Sequence[Point], spec: JobSpec, run: Path) -> str:
    """The file that ``submit`` would submit now, or what it would start on this machine."""
    place = snapshot.next_place(run)
    if spec.cluster.is_local:
        return f"{spec.world} processes on this machine, run folder {run}, output in {place.folder}\n"
    return Sbatch(spec, place.folder, place.code).text(len(points) if _is_sweep(points) else None)


def test_only(points: Sequence[Point], spec: JobSpec, run: Path) -> str:
    """Slurm's answer to when the job would start."""
    with tempfile.NamedTemporaryFile("w", suffix=".sh") as script:
        script.write(text(points, spec, run))
        script.flush()
        command = ["sbatch", "--test-only", script.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except FileNotFoundError:
            raise InputError("--test-only: there is no sbatch here") from None
    if done.returncode:
        raise InputError(f"sbatch: {done.stderr.strip()}")
    return done.stderr.strip() or done.stdout.strip()


def submit(points: Sequence[Point], spec: JobSpec, run: Path, here: bool, follow: bool) -> int:
    """Submit; returns the exit code for the shell: the job's, if it was followed."""
    os.umask(0o077)
    place = snapshot.create(run)
    snapshot.copy_code(place.code)
    if _is_sweep(points):
        places = [snapshot.create(point.config.run) for point in points]
        snapshot.write_spec(place, spec)
        rows = [f"{i:03d} {dict(point.values)}" for i, point in enumerate(points)]
        write_atomic(place.folder / "sweep.txt", ("\n".join(rows) + "\n").encode())
    else:
        places = [place]
    for point, own in zip(points, places, strict=True):
        snapshot.fill(own, point.config, spec, os.environ)
    tasks = [Task(str(own.folder), str(place.code)) for own in places]

    if spec.cluster.is_local:
        return _local(place, spec, tasks[0], follow)
    if here:
        return _here(place, spec, tasks[0], follow)
    try:
        jobs = hand_over(spec, place, tasks, array=_is_sweep(points))
    except InputError:
        for folder in {place.folder, *(own.folder for own in places)}:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for own, job in zip(places, jobs, strict=True):
        _record(own, place, spec, job)
    if _is_sweep(points):  # the sweep's own folder knows the array, to look at and to cancel
        _record(place, place, spec, jobs[0].split("_")[0])
    many = f"{len(jobs)} x " if len(jobs) > 1 else ""
    size = f"{spec.nodes} nodes x {spec.tasks_per_node} ranks on {spec.cluster.name}"
    print(f"job {jobs[0].split('_')[0]}: {many}{size}, run folder {run}")
    print(f"follow it: python -m launch.jobs logs {run} --follow")
    if follow and len(jobs) == 1:
        follow_run(run, 0)
        return last_code(run)
    return 0


def refuse_second(run: Path, spec: JobSpec) -> None:
    """InputError if the run's newest job is not over: two must not write into one run folder."""
    submitted = [e for e in ledger.events(run) if e["event"] == "submitted"]
    if not submitted or spec.after == (job := str(submitted[-1]["job"])):
        return
    if submitted[-1]["cluster"] == LOCAL:
        state = "RUNNING" if local_process(job) else ""
    else:
        told = query.ask({job: str(submitted[-1].get("name"))}).get(job)
        state = told.state if told else ""  # unknown to Slurm: long over
    if state in LIVING:
        raise InputError(
            f"{run}: job {job} of this run is {state}: cancel it (python -m launch.jobs cancel {run}), or "
            f"let this one follow with --after {job}"
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


def _local(place: Place, spec: JobSpec, task: Task, follow: bool) -> int:
    executor = submitit.LocalExecutor(place.folder, max_num_timeout=UNLIMITED)
    executor.update_parameters(
        tasks_per_node=spec.tasks_per_node,
        gpus_per_node=spec.gpus_per_node,
        timeout_min=WITHOUT_LIMIT,
        stderr_to_stdout=True,
    )
    path = os.pathsep.join(filter(None, [str(place.code), os.environ.get("PYTHONPATH")]))
    if not follow:  # the job outlives the terminal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # submitit numbers a machine's GPUs from 0, whichever of them this shell was given.
    shown = {SHOWN: os.environ["CUDA_VISIBLE_DEVICES"]} if "CUDA_VISIBLE_DEVICES" in os.environ else {}
    with environment_variables(PYTHONPATH=path, **shown), output_to(place.folder / "controller.log"):
        job = executor.submit(task)
    _record(place, place, spec, job.job_id)
    print(f"local job {job.job_id}: {spec.tasks_per_node} ranks on this machine, run folder {place.run}")
    if follow:
        log = place.folder / f"{job.job_id}_0_log.out"
        tail(log, ended=lambda: job.state != "RUNNING")
        return last_code(place.run)
    print(f"follow it: python -m launch.jobs logs {place.run} --follow")
    return 0


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What is started in the block writes to ``path``: it must not hold the terminal's pipe open."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)


def _here(place: Place, spec: JobSpec, task: Task, follow: bool) -> int:
    """Run the job's steps inside the allocation that this process is in; returns when they ended."""
    job = os.environ["SLURM_JOB_ID"]
    script = place.folder / f"{job}_submission.sh"
    script.write_text(Sbatch(spec, place.folder, place.code).text())
    delayed = DelayedSubmission(task)
    delayed.set_timeout(WITHOUT_LIMIT, UNLIMITED)
    delayed.dump(place.folder / f"{job}_submitted.pkl")
    _record(place, place, spec, job)
    log = place.folder / f"{job}_0_log.out"
    print(
        f"allocation {job}: {spec.nodes} nodes x {spec.tasks_per_node} ranks, run folder {place.run}, "
        f"output {log}"
    )
    # srun takes its layout from our arguments, not from what salloc was told.
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NPROCS")
    }
    with subprocess.Popen(["bash", str(script)], env=inherited) as process:
        if follow:
            tail(log, ended=lambda: process.poll() is not None)
        return process.wait()


def _record(own: Place, place: Place, spec: JobSpec, job: str) -> None:
    """Tell the run's ledger and the user's list of jobs."""
    ledger.record(
        own.run,
        "submitted",
        attempt=next_attempt(own.run),
        job=job,
        name=spec.job,
        folder=str(place.folder),
        cluster=spec.cluster.name,
        nodes=spec.nodes,
        ranks=spec.world,
    )
    registry.remember(own.run, job, spec.cluster.name)


def next_attempt(run: Path) -> int:
    """The number of the attempt after the last one that was started."""
    begun = [e["attempt"] for e in ledger.events(run) if e["event"] != "submitted" and "attempt" in e]
    return max((int(number) for number in begun), default=-1) + 1


def last_code(run: Path) -> int:
    """Exit code of the newest job's last attempt, as the ledger has it; 1 if it ended without a word."""
    for _ in range(20):  # a network disk shows the last line late
        events = list(ledger.events(run))
        job = [str(e["job"]) for e in events if e["event"] == "submitted"][-1]
        ends = [e for e in events if e["event"] == "ended" and str(e.get("job")) == job]
        if ends:
            return int(ends[-1].get("code", 1))
        time.sleep(0.1)
    return 1


def _is_sweep(points: Sequence[Point]) -> bool:
    return any(point.values for point in points)
