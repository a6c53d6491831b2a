"""One life of a job, without Slurm, for tests of what its supervisor tells others."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.supervise.environment import Layout
from launch.supervise.limits import Limits
from launch.supervise.meeting import Meeting


def write_profile(folder: Path, text: str, mode: int = 0o600) -> Path:
    """A cluster's profile of that text."""
    path = folder / "site.yaml"
    path.write_text(text)
    path.chmod(mode)
    return path


def job_of(cluster: Cluster) -> JobSpec:
    """A job of one rank."""
    return JobSpec(
        cluster=cluster, job="j", nodes=1, nodes_min=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=1,
        minutes=60, requeue=False,
    )  # fmt: skip


def life_of(tmp_path: Path, cluster: Cluster) -> Any:
    """What a supervisor has of a job of that cluster, with a run folder in ``tmp_path``."""
    run = tmp_path / "run"
    live = run / "job" / "001" / "live"
    live.mkdir(parents=True)
    meeting = Meeting(live, "7.0.0")
    meeting.open()
    life: Any = SimpleNamespace(
        where=Layout("7", "7.0.0", 0, 0, 1, 0, 1, 0, ("n1",)), meeting=meeting, run_folder=run,
        spec=job_of(cluster), asked=0, said=[], tick=lambda: None, used_up=False,
        limits=Limits(0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    )  # fmt: skip
    life.say = life.said.append
    return life
