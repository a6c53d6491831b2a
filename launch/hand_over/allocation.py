"""A job inside an allocation that this process is in (salloc)."""

from __future__ import annotations

import os
import subprocess

from submitit.core.utils import DelayedSubmission

from diffbase.line import printable
from launch.ask.spec import JobSpec
from launch.follow.tail import tail
from launch.hand_over.local import WITHOUT_LIMIT
from launch.job.entry import record
from launch.job.folder import Place, log_of
from launch.job.sbatch import UNLIMITED, Sbatch
from launch.supervise.task import Task


def run(place: Place, spec: JobSpec, task: Task, follow: bool) -> int:
    """Run the job's steps inside the allocation that this process is in; returns when they ended."""
    job = os.environ["SLURM_JOB_ID"]
    script = place.folder / f"{job}_submission.sh"
    script.write_text(Sbatch(spec, place.folder, place.code).text())
    delayed = DelayedSubmission(task)
    delayed.set_timeout(WITHOUT_LIMIT, UNLIMITED)
    delayed.dump(place.folder / f"{job}_submitted.pkl")
    record(place, place, spec, job)
    log = log_of(place.folder, job, 0)
    size = f"{spec.nodes} nodes x {spec.tasks_per_node} ranks"
    print(printable(f"allocation {job}: {size}, run folder {place.run}, output {log}"))
    # srun takes its layout from our arguments, not from salloc's.
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "SLURM_NPROCS")
    }
    with subprocess.Popen(["bash", str(script)], env=inherited) as process:
        if follow:
            tail(log, ended=lambda: process.poll() is not None)
        return process.wait()
