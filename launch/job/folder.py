"""The job's folder in the run folder: the code, config and environment that every life of it runs with.

RUN/job/001/            one submission, owner only; the next one is 002
    code/               the checkout's tracked files, as they are on the disk now
    config.yaml         the resolved config
    job.json            JobSpec and where things are
    environment.json    variables of an allow-list: none that may hold a secret
    NNN_submitted.pkl   submitit's, NNN_RANK_log.out the ranks' output
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffbase import json_file
from diffbase.explain import validated
from diffbase.files import write_atomic, write_json
from diffbase.trust import own_folder
from diffcore.config.tree import Config
from launch.ask.spec import JobSpec

JOBS = "job"  # RUN/job
LARGEST = 4 << 20  # bytes of a job.json

# Names that are kept; whatever looks like a secret is left out even so.
KEPT = re.compile(
    r"(PATH|LD_LIBRARY_PATH|PYTHONPATH|VIRTUAL_ENV|CONDA_(PREFIX|DEFAULT_ENV)|LANG|LC_\w+|TZ|USER|HOSTNAME"
    r"|LOADEDMODULES|SLURM_CONF|(CUDA|NCCL|GLOO|UCX|FI|OMP|MKL|KMP|TORCH|PYTORCH|DS|DIFFCORE|SUBMITIT)_\w+)"
)
SECRET = re.compile(
    r"TOKEN|SECRET|PASS|CREDENTIAL|AUTH|(^|_)(API|ACCESS|PRIVATE|SSH)?_?KEY(_|S?$)", re.IGNORECASE
)


@dataclass(frozen=True)
class Place:
    """One submission's folder, ``RUN/job/001``."""

    folder: Path

    @property
    def run(self) -> Path:
        """The run folder."""
        return self.folder.parents[1]

    @property
    def code(self) -> Path:
        """The snapshot of the code."""
        return self.folder / "code"

    @property
    def config(self) -> Path:
        """The resolved config, a YAML."""
        return self.folder / "config.yaml"

    @property
    def live(self) -> Path:
        """Where the supervisors of a life of the job meet."""
        return self.folder / "live"

    def spec(self) -> JobSpec:
        """The job's size and cluster from job.json. InputError if it does not hold them."""
        path = self.folder / "job.json"
        return validated(JobSpec, json_file.read(path, most=LARGEST), str(path))


def next_place(run: Path) -> Place:
    """The folder that the next submission of ``run`` gets; nothing is made."""
    taken = [int(p.name) for p in (run / JOBS).glob("[0-9]*") if p.name.isdigit()]
    return Place(run / JOBS / f"{max(taken, default=0) + 1:03d}")


def create(run: Path, group: bool = False) -> Place:
    """Make that folder, owner only. InputError if others may write into the run folder or ``RUN/job``.

    What lies in it is run on every node, so the folders above count too. ``group`` as of ``check_folder``.
    """
    for folder in (run, run / JOBS):
        own_folder(folder, group=group, code=True)
    if not group and run.stat().st_uid == os.getuid():
        run.chmod(0o700)
    while True:
        place = next_place(run)
        try:
            place.folder.mkdir(mode=0o700)
        except FileExistsError:  # another submission took the number at the same moment
            continue
        return place


def fill(place: Place, config: Config, spec: JobSpec, environment: Mapping[str, str]) -> None:
    """Write the config, the spec and the environment."""
    write_atomic(place.config, config.to_yaml().encode())
    write_spec(place, spec)
    write_json(place.folder / "environment.json", allowed(environment), sort_keys=True)
    for name in ("config.yaml", "environment.json"):
        (place.folder / name).chmod(0o600)
    place.live.mkdir(mode=0o700)


def write_spec(place: Place, spec: JobSpec) -> None:
    """Write job.json, readable by its owner alone."""
    write_atomic(place.folder / "job.json", (spec.model_dump_json(indent=1) + "\n").encode())
    (place.folder / "job.json").chmod(0o600)


def allowed(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that may be written down."""
    return {k: v for k, v in environment.items() if KEPT.fullmatch(k) and not SECRET.search(k)}
