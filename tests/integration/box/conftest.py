"""A real Slurm on this machine for the tests that need one: up once, down at the end."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.box.machine import PACKAGES, missing_programs

REPOSITORY = Path(__file__).resolve().parents[3]


def why_not() -> str | None:
    """Why this machine cannot have a box."""
    if os.geteuid() != 0:
        return "a box needs root"
    if missing := missing_programs():
        return f"{', '.join(missing)} not found: apt-get install {PACKAGES} (make system-slurm)"
    return None


@dataclass(frozen=True)
class RunningBox:
    folder: Path

    @property
    def env(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH"))}
        return kept | {"SLURM_CONF": str(self.folder / "etc/slurm.conf")}

    def run(self, *command: str, timeout: float = 60, cwd: Path | None = None) -> str:
        """One of Slurm's commands, which must succeed; what it printed, stripped."""
        # fmt: off
        done = subprocess.run(
            command, env=self.env, cwd=cwd or self.folder, capture_output=True, text=True, timeout=timeout
        )
        # fmt: on
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout.strip()

    def box(self, *arguments: str) -> str:
        """A command of slurm/box.py on this box."""
        return box_py(*arguments, "--dir", str(self.folder))

    def sbatch(self, script: str, *options: str) -> str:
        """Submit a bash script; the job's number."""
        path = self.folder / "job.sh"
        path.write_text(f"#!/bin/bash\n{script}\n")
        output = f"--output={self.folder}/%j.out"
        return self.run("sbatch", "--parsable", "--open-mode=append", output, *options, str(path))

    def state(self, job: str) -> str:
        """Of a job that slurmctld knows: PENDING, RUNNING, ..."""
        return self.run("squeue", "--states=all", "--noheader", "--format=%T", "--jobs", job)


def box_py(*arguments: str, code: int = 0) -> str:
    """Run slurm/box.py by path, from another folder; its output, or its error line."""
    command = [sys.executable, str(REPOSITORY / "slurm/box.py"), *arguments]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def wait_for(what: Callable[[], object], seconds: float = 60) -> float:
    """Seconds until ``what()`` is true."""
    start = time.monotonic()
    while not what():
        assert time.monotonic() - start < seconds, "waited too long"
        time.sleep(0.2)
    return time.monotonic() - start


@pytest.fixture(scope="session")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningBox]:
    if reason := why_not():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("box")
    try:
        box_py("up", "--nodes", "2", "--gpus", "2", "--dir", str(folder))
        yield RunningBox(folder)
    finally:
        box_py("down", "--dir", str(folder))
