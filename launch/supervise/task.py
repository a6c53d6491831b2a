"""What submitit runs once on every node: a supervisor of its ranks' training processes.

Picklable, and torch is never loaded in it: a signal may come at any moment, and whoever answers it must not
sit in a collective. Training itself is a process of its own (diffcore/train.py of the run's snapshot).
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """``folder``: RUN/job/NNN of this run; ``code``: the snapshot that is run."""

    folder: str
    code: str

    def __call__(self) -> int:
        """Supervise this node's ranks until the job ends; leaves with the run's exit code if it is not 0."""
        from pathlib import Path

        from diffbase import output
        from launch.job.folder import Place
        from launch.supervise.environment import layout
        from launch.supervise.life import Life
        from launch.supervise.supervisor import Supervisor

        with output.guarded(survive=True):  # a log that cannot be written is no reason to end a job
            place = Place(Path(self.folder))
            life = Life(place, layout(os.environ, place.spec().tasks_per_node))
            code = Supervisor(life, Path(self.code), lambda place: Task(str(place.folder), self.code)).run()
            output.flush()
        if code:
            # Not an exception: submitit would pickle it as the job's result, and every node would print it.
            sys.stdout.flush()
            sys.exit(code)
        return code

    def checkpoint(self) -> Any:
        """What submitit submits again: the same. The newest complete checkpoint on disk decides the rest.

        Only called if a signal comes before the supervisor has put its own handlers in submitit's place.
        """
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
