"""Submit a training by submitit, with the ``checkpoint`` of its documentation. Prints the job's number.

    python benchmarks/peers/by_submitit.py CONFIG RUN

https://github.com/facebookincubator/submitit/blob/main/docs/checkpointing.md: at a time limit or a preemption
submitit calls ``checkpoint`` and submits what it returns; the loop takes up its newest snapshot.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import submitit

HERE = Path(__file__).resolve().parent


class Training:
    """The callable that submitit pickles."""

    def __init__(self, config: str, run: str) -> None:
        self.config, self.run = config, run

    def __call__(self) -> None:
        sys.path.insert(0, str(HERE))
        import training

        job = submitit.JobEnvironment()
        os.environ |= {
            "RANK": str(job.global_rank),
            "WORLD_SIZE": str(job.num_tasks),
            "LOCAL_RANK": str(job.local_rank),
            "MASTER_ADDR": job.hostnames[0],
            "MASTER_PORT": str(20000 + int(job.job_id) % 10000),
        }
        training.fit(Path(self.config), Path(self.run))

    def checkpoint(self) -> Any:
        return submitit.helpers.DelayedSubmission(Training(self.config, self.run))


if __name__ == "__main__":
    config, run = sys.argv[1:]
    executor = submitit.SlurmExecutor(folder=Path(run) / "submitit", max_num_timeout=10)
    executor.update_parameters(
        nodes=2, ntasks_per_node=1, cpus_per_task=1, time=30, partition="low", signal_delay_s=25
    )
    print(executor.submit(Training(config, run)).job_id)
