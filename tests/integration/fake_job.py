"""Supervisors of a whole job on this machine, over a training script that is told how each attempt ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffbase import ledger
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job import folder as snapshot
from launch.job.folder import log_of

REPOSITORY = Path(__file__).resolve().parents[2]

# Stands in for diffcore/train.py: $ACTS/acts.json says what a rank does in an attempt; else it is done.
SCRIPT = """
import json, os, pathlib, signal, sys, time
from diffbase import ledger
run = pathlib.Path(sys.argv[2]).parents[2]
told = pathlib.Path(os.environ["ACTS"])
rank, attempt = int(os.environ["RANK"]), int(os.environ["DIFFCORE_ATTEMPT"])
asked = []
for number in (signal.SIGUSR2, signal.SIGTERM):
    signal.signal(number, lambda n, f: asked.append(n))
acts = json.loads((told / "acts.json").read_text())
act = acts.get(f"{attempt}.{rank}", acts.get(f"{attempt}", ["done"]))
with open(told / f"seen-{attempt}-{rank}.json", "w") as file:
    facts = dict(pid=str(os.getpid()), cores=sorted(os.sched_getaffinity(0)), started=" ".join(sys.orig_argv))
    json.dump(dict(os.environ, **facts), file)
print("attempt", attempt, "of rank", rank, flush=True)
step = act[1] if len(act) > 1 else 1
if rank == 0 and step:
    ledger.beat(run, step, 100, "train")
if act[0] == "wait":
    until = time.monotonic() + 30
    while not asked and time.monotonic() < until:
        time.sleep(0.05)
    sys.exit(85 if asked else 75)
if act[0] == "hold":  # until it may go
    until = time.monotonic() + 60
    while not (told / "go").exists():
        if time.monotonic() > until:
            sys.exit(75)
        time.sleep(0.05)
if act[0] == "deaf":
    time.sleep(60)
if act[0] == "save":  # a checkpoint is being written, for a while
    (run / ".saving").touch()
    time.sleep(act[2])
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "COMPLETE").touch()
    (run / ".saving").unlink()
    time.sleep(60)
if act[0] == "kill":
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
if act[0] == "exit":
    time.sleep(0.3)
    sys.exit(act[2])
"""

BOUND: dict[str, str] = {}
"""What Slurm says of the cores that it bound a task to."""


@dataclass
class FakeJob:
    """A supervisor on each of ``nodes`` nodes as srun would start it, with ``world`` ranks in all."""

    place: snapshot.Place
    world: int
    nodes: int
    processes: list[subprocess.Popen[str]]

    def start(self, restart: int = 0, job: str = "7") -> None:
        # A scontrol that knows the job as running, and notes what it is asked for.
        scontrol = self.bin / "scontrol"
        answer = (
            f"JobId={job} JobName=fake JobState=RUNNING Reason=None Requeue=1 Restarts={restart} BatchFlag=1"
        )
        scontrol.write_text(
            f'#!/bin/sh\n[ "$1" = show ] && echo "{answer}" || echo "$@" >> {self.bin}/asked\n'
        )
        scontrol.chmod(0o755)
        for node in range(self.nodes):
            env = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")} | {
                "SUBMITIT_EXECUTOR": "slurm",
                "SLURM_JOB_ID": job,
                "SLURM_RESTART_COUNT": str(restart),
                "SLURM_PROCID": str(node),
                "SLURM_LOCALID": "0",
                "SLURM_NODEID": str(node),
                "SLURM_NTASKS": str(self.nodes),
                "SLURM_TASKS_PER_NODE": f"1(x{self.nodes})",
                "SLURMD_NODENAME": f"n{node + 1}",
                "SLURM_JOB_NODELIST": f"n[1-{self.nodes}]",
                **BOUND,
                "PYTHONPATH": str(REPOSITORY),
                "ACTS": str(self.place.run),
                "XDG_STATE_HOME": str(self.place.run.parent / "state"),
                "PATH": f"{self.bin}:/usr/bin:/bin",
            }
            code = "import sys; from launch.supervise.task import Task; sys.exit(Task(*sys.argv[1:])())"
            command = [sys.executable, "-c", code, str(self.place.folder), str(self.place.code)]
            self.processes.append(
                subprocess.Popen(
                    command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
            )

    def wait(self, timeout: float = 60) -> tuple[list[int], str]:
        """The supervisors' exit codes and their output."""
        outputs = [process.communicate(timeout=timeout)[0] for process in self.processes]
        return [process.returncode for process in self.processes], "\n".join(outputs)

    def log(self, rank: int, job: str = "7") -> str:
        """A rank's own output."""
        return log_of(self.place.folder, job, rank).read_text()

    def signal(self, number: int) -> None:
        for process in self.processes:
            process.send_signal(number)

    @property
    def bin(self) -> Path:
        folder = self.place.run.parent / "bin"
        folder.mkdir(exist_ok=True)
        return folder

    def asked_slurm(self) -> str:
        """What scontrol was asked for, beside the job's state."""
        path = self.bin / "asked"
        return path.read_text() if path.exists() else ""

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in ledger.events(self.place.run) if event["event"] == kind]

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGKILL)
            process.wait()


def make(
    folder: Path,
    acts: dict[str, list[Any]],
    world: int = 2,
    nodes: int | None = None,
    preflight: dict[str, Any] | None = None,
    **spec: Any,
) -> FakeJob:
    """A job's folder whose training is ``acts``: "attempt" or "attempt.rank" -> [what, step, detail].

    ``nodes``: as many as there are ranks unless it is given.
    """
    import json

    nodes = world if nodes is None else nodes
    run = folder / "run"
    place = snapshot.create(run)
    (run / "acts.json").write_text(json.dumps(acts))
    (place.code / "diffcore").mkdir(parents=True)
    (place.code / "diffcore" / "train.py").write_text(SCRIPT)
    cluster = Cluster.model_validate({"name": "fake", "signal_seconds": 20} | spec.pop("cluster", {}))
    cluster = cluster.model_copy(update={"network": cluster.network.model_copy(update={"interface": "lo"})})
    tree = {
        "cluster": cluster.model_dump()
        | {"preflight": {"mode": "quick", "run_gb": 0, "scratch_gb": 0} | (preflight or {})},
        "job": "fake", "nodes": nodes, "nodes_min": nodes, "tasks_per_node": world // nodes,
        "gpus_per_node": 0, "cpus_per_task": 1, "minutes": 60,
    }  # fmt: skip
    snapshot.write_spec(place, JobSpec.model_validate(tree | spec))
    place.live.mkdir()
    return FakeJob(place, world, nodes, [])
