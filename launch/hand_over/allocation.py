"""A job inside an allocation that this process is in (salloc, or a shell of srun)."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping

from submitit.core.utils import DelayedSubmission

from diffbase.line import printable
from launch.ask.spec import JobSpec
from launch.follow.tail import tail
from launch.hand_over.local import WITHOUT_LIMIT
from launch.job.entry import record
from launch.job.folder import Place, log_of
from launch.job.sbatch import UNLIMITED, Sbatch
from launch.supervise.task import Task

LAYOUT = re.compile(r"SLURM_(NTASKS|NTASKS_PER_NODE|NPROCS|CPU_BIND\w*|CPUS_PER_TASK|STEP_\w+|DISTRIBUTION)")
"""Variables of the step that this shell is in, or of salloc, which srun would take for its own layout."""
SPECIAL = 0xFFFFFF00
"""Numbers of steps from here on are Slurm's own kinds; an interactive shell of salloc takes nothing away."""


def environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Of the allocation's own steps, whose layout is in srun's arguments.

    Inside ``srun --pty bash`` they share what its step holds, all there is; else they wait for ever.
    """
    kept = {name: value for name, value in environ.items() if not LAYOUT.fullmatch(name)}
    step = environ.get("SLURM_STEP_ID", "")
    if step.isdigit() and int(step) < SPECIAL:
        kept["SLURM_OVERLAP"] = "1"
    return kept


def run(place: Place, spec: JobSpec, task: Task, follow: bool, errors_only: bool = False) -> tuple[int, str]:
    """Run the job's steps inside the allocation that this process is in; returns when they ended: the exit
    code, and the job's number. ``errors_only``: what they print goes to standard error."""
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
    out = 2 if errors_only else None
    with subprocess.Popen(["bash", str(script)], env=environment(os.environ), stdout=out) as process:
        if follow:
            tail(log, ended=lambda: process.poll() is not None)
        return process.wait(), job
