"""A job on this machine, without Slurm."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import submitit
from submitit.core.utils import environment_variables

from diffbase.line import printable, say
from diffbase.trust import file_mode
from launch.ask.spec import JobSpec
from launch.follow.tail import hint, tail
from launch.job.entry import last_code, record
from launch.job.folder import Place, log_of
from launch.job.sbatch import UNLIMITED, command, python_path
from launch.supervise.environment import SHOWN
from launch.supervise.task import Task

WITHOUT_LIMIT = 60 * 24 * 365  # minutes; on one machine nobody waits in a queue


class Local(submitit.LocalExecutor):
    """submitit's executor, whose command checks first whose the folder is."""

    group, ranks, code = False, 1, Path()

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} {command(self.folder, self.code, self.ranks, self.group)}"


def start(place: Place, spec: JobSpec, task: Task, follow: bool) -> tuple[int, str]:
    """Start the job's processes; returns the exit code for the shell (the job's, if it was followed), and
    the job's number."""
    executor = Local(place.folder, max_num_timeout=UNLIMITED)
    executor.group, executor.ranks, executor.code = spec.group, spec.tasks_per_node, place.code
    executor.update_parameters(
        tasks_per_node=1,  # the supervisor, which starts the ranks
        gpus_per_node=spec.gpus_per_node,
        timeout_min=WITHOUT_LIMIT,
        stderr_to_stdout=True,
    )
    path = os.pathsep.join(filter(None, [*python_path(place.code), os.environ.get("PYTHONPATH")]))
    if not follow:  # the job outlives the terminal
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # submitit numbers a machine's GPUs from 0, whichever of them this shell was given.
    shown = {SHOWN: os.environ["CUDA_VISIBLE_DEVICES"]} if "CUDA_VISIBLE_DEVICES" in os.environ else {}
    with environment_variables(PYTHONPATH=path, **shown), output_to(place.folder / "controller.log"):
        job = executor.submit(task)
    record(place, place, spec, job.job_id)
    ranks = f"{spec.tasks_per_node} ranks on this machine"
    print(printable(f"local job {job.job_id}: {ranks}, run folder {place.run}"))
    if follow:
        tail(log_of(place.folder, job.job_id, 0), ended=lambda: job.state != "RUNNING")
        return last_code(place.run), job.job_id
    say(hint(place.run))
    return 0, job.job_id


@contextmanager
def output_to(path: Path) -> Iterator[None]:
    """What is started in the block writes to ``path``: it must not hold the terminal's pipe open."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with path.open("ab") as file:
        os.fchmod(file.fileno(), file_mode(path.parent))
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    try:
        yield
    finally:
        for number, before in zip((1, 2), kept, strict=True):
            os.dup2(before, number)
            os.close(before)
