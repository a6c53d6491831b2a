"""Cluster profiles: one YAML each, with all that is specific to a site. Imports no torch.

By name they are found in the folders of $DIFFCORE_PROFILES (which a site sets), in
~/.config/diffcore/profiles and among those that ship (slurm/profiles/), in that order.

A profile says which partition and account to ask for, how GPUs are asked for, what the network needs and
where scratch is. Nothing of a site is in Python; ``slurm/profiles/box.yaml`` names every key in use.
"""

from __future__ import annotations

import os
import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal, Self, get_args

from pydantic import Field, SecretStr, field_validator, model_validator

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import path_of
from diffbase.formats import yaml_file
from diffbase.machine import cards, home
from diffbase.shipped import shipped
from diffcore.config.section import Section
from diffcore.config.tree import Access

LOCAL = "local"
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
"""Name of an environment variable."""


class Gpus(Section):
    """How a cluster's GPUs are asked for, and what they hold."""

    form: Literal["gres", "gpus-per-node", "none"] = "gres"
    """How GPUs are asked for: --gres=gpu:N, --gpus-per-node=N, or not at all."""
    type: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.-]+$")
    """GPU type in that request (gpu:TYPE:N), where the site names them."""
    memory_gb: float | None = Field(default=None, gt=0, le=1e6)
    """Memory of one GPU, GB as it is sold: a run whose memory plan does not fit is not submitted."""
    card: str | None = Field(default=None, max_length=100)
    """Instead: which card it is, "A100 40GB" or "H100 1g.10gb" (a MIG slice); submit --auto chooses by it."""

    @model_validator(mode="after")
    def _known(self) -> Self:
        if self.card is not None and self.memory_gb is not None:
            raise ValueError("card says the memory too: leave memory_gb out")
        if self.card is not None and cards.find(self.card) is None:
            raise ValueError(f"card {self.card!r} is not known here: {cards.near(self.card)}")
        return self


class Network(Section):
    """How ranks reach each other."""

    interface: str | None = None
    """Network interface (ib0, eth0, ...) of the rendezvous and of gloo's and NCCL's sockets."""
    env: dict[Variable, str] = Field(default_factory=dict)
    """NCCL_*, GLOO_*, UCX_* and the like, set for every rank."""


class Container(Section):
    """An image that the job runs in, through pyxis."""

    image: str
    """Image for pyxis: a path of a squashfs file, or registry#image:tag."""
    mounts: tuple[str, ...] = ()
    """SOURCE:TARGET[:ro]; the run folder is always mounted."""
    python: str = "python"
    """Interpreter inside the container."""


class Preflight(Section):
    """What is checked on every node before training starts."""

    mode: Literal["full", "quick", "off"] = "full"
    """full: disk, devices, data and a timed all-reduce; quick: without the all-reduce; off: nothing."""
    devices: bool = True
    """Look at the GPUs that were asked for: all there, and no memory errors."""
    data: bool = True
    """Read the shards' index, which has to be the submitted one, and a sample of some shards."""
    floor_gbps: float = Field(default=0.0, ge=0)
    """Least all-reduce bandwidth (algorithm's, GB/s) over all ranks; 0: it only has to work."""
    run_gb: float = Field(default=2.0, ge=0)
    """Room that the run folder's disk must have, GB."""
    scratch_gb: float = Field(default=1.0, ge=0)
    """Room that node-local scratch must have, GB."""
    exclude_hours: float = Field(default=24.0, ge=0)
    """How long a node that failed is left out of submissions."""


News = Literal["done", "failed", "requeued", "stopped", "no_progress"]
"""What there is to tell: no_progress is of an attempt that failed and got the run no further."""


class Notify(Section):
    """Who is told what became of a job: a command, a webhook, or both. JSON, of less than 16 kB."""

    events: tuple[News, ...] = get_args(News)
    """What is told."""
    command: tuple[str, ...] = ()
    """Program and arguments, started without a shell on the first node; the JSON is its standard input."""
    webhook: SecretStr | None = Field(default=None, exclude=True)
    """https address that the JSON is posted to. A secret: nobody else may read the profile (chmod 600), and
    it is in no run folder."""
    webhook_env: Variable | None = None
    """The same, in an environment variable of this name, which the job has."""
    webhook_in: Path | None = None
    """Profile that holds the webhook: known when it is loaded."""
    seconds: float = Field(default=10.0, gt=0, le=60)
    """How long it may take; the job does not wait for it but at its own end."""

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not (self.command or self.webhook or self.webhook_env or self.webhook_in):
            raise ValueError("nobody to tell: give command, webhook or webhook_env")
        return self


class Prometheus(Section):
    """Figures of the run for Prometheus, in a file that node_exporter's textfile collector reads."""

    folder: Path
    """The collector's folder (--collector.textfile.directory) on the first node; the job writes into it."""
    seconds: float = Field(default=15.0, ge=1, le=3600)
    """Between two looks at the run."""


class Cluster(Section):
    """A cluster as its profile describes it."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name in messages and in the list of excluded nodes."""
    partition: str | None = None
    """Partition."""
    account: str | None = None
    """Account that is charged."""
    qos: str | None = None
    """Quality of service."""
    constraint: str | None = None
    """Node features, as sbatch --constraint."""
    gpus: Gpus = Gpus()
    cpus_per_task: int = Field(default=1, ge=1)
    """Cores per rank."""
    mem_gb: float | None = Field(default=None, ge=0, le=1e6)
    """Memory per node, GB; 0: all of it; None: the site's default."""
    minutes: int = Field(default=60, ge=1)
    """Time limit where --time gives none."""
    max_minutes: int | None = Field(default=None, ge=1)
    """Longest time limit that may be asked for."""
    signal_seconds: int = Field(default=120, ge=5)
    """How long before the time limit the job is asked to save."""
    exclusive: bool = False
    """Whole nodes."""
    sbatch: dict[str, str | int | bool] = Field(default_factory=dict)
    """Any other sbatch option, without the dashes."""
    srun: tuple[str, ...] = ()
    """Any other srun argument (--cpu-bind=cores, --mpi=none, ...)."""
    setup: tuple[str, ...] = ()
    """Shell lines before the job starts: module load, source ...; they run once, on the first node."""
    env: dict[Variable, str] = Field(default_factory=dict)
    """Environment of every rank."""
    python: str | None = None
    """Interpreter on the nodes; None: the one that submits."""
    network: Network = Network()
    container: Container | None = None
    scratch: Path | None = None
    """Node-local scratch; a job makes its own folder in it. None: $SLURM_TMPDIR where the site sets it."""
    preflight: Preflight = Preflight()
    run_access: Access | None = None
    """Who may read new run folders, where the config does not say: private (the owner) or group."""
    notify: Notify | None = None
    prometheus: Prometheus | None = None
    slow_factor: float = Field(default=1.5, gt=1)
    """A rank that takes so many times its peers' time for its own part of a step is slow."""
    leave_out_slow: bool = False
    """Whether a node that is slow is left out of the job when it is queued again, if another one is idle."""

    @field_validator("sbatch")
    @classmethod
    def _options(cls, options: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        for key in options:
            if not re.fullmatch(r"[a-z][a-z0-9-]*", key):
                raise ValueError(f"{key!r} is no sbatch option; write it without the leading dashes")
        return options

    @property
    def is_local(self) -> bool:
        """Whether jobs are processes of this machine, without Slurm."""
        return self.name == LOCAL


def folders() -> list[Path]:
    """Where profiles are looked for: the site's, the user's, those that ship."""
    site = [Path(part) for part in os.environ.get("DIFFCORE_PROFILES", "").split(os.pathsep) if part]
    own = home.config()
    return [*site, *([own / "profiles"] if own else []), shipped("slurm", "profiles")]


def profiles() -> dict[str, Path]:
    """The profiles there are, by name; of two with one name the one whose folder comes first."""
    found: dict[str, Path] = {}
    for folder in folders():
        # A folder that may not be entered has none: where HOME is another user's, as after su, there is one.
        with suppress(PermissionError):
            for path in folder.glob("*.yaml"):
                found.setdefault(path.stem, path)
    return dict(sorted(found.items()))


def choose(name: str | None) -> Cluster:
    """The cluster that ``--cluster`` names: ``local``, a profile's name or a YAML's path.

    None is ``local`` where there is no sbatch; where there is, the name must be given. InputError otherwise.
    """
    if name is None:
        if shutil.which("sbatch"):
            raise InputError(f"--cluster is missing; allowed: {', '.join(_names())}, or a profile's path")
        name = LOCAL
    if name == LOCAL:
        return Cluster(name=LOCAL, gpus=Gpus(form="none"), preflight=Preflight(mode="quick", scratch_gb=0))
    path = path_of(name, "--cluster")
    if path.suffix not in (".yaml", ".yml"):
        known = profiles()
        if name not in known:
            raise InputError(
                f"--cluster: no profile {name!r}; allowed: {', '.join(_names())}, or a YAML file"
            )
        path = known[name]
    cluster = load(path)
    _check_idle(cluster, path)
    return cluster


def _check_idle(cluster: Cluster, path: Path) -> None:
    """InputError for what would do nothing; of a profile that is chosen, not of one that a job kept."""
    idle = {
        "python: in a container container.python counts": cluster.python and cluster.container,
        "gpus.type: gpus.form none asks for no GPUs": cluster.gpus.type and cluster.gpus.form == "none",
        "preflight.floor_gbps: preflight.mode full alone times an all-reduce":
            cluster.preflight.floor_gbps and cluster.preflight.mode != "full",
    }  # fmt: skip
    for words, given in idle.items():
        if given:
            raise InputError(f"{path}: {words}, so it would do nothing; leave it out")


def _names() -> list[str]:
    return [LOCAL, *profiles()]


def load(path: Path) -> Cluster:
    """A profile from its YAML. InputError names the key, what was given and what is allowed."""
    tree = yaml_file.read(path, "no such cluster profile")
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping, got {type(tree).__name__}")
    return _with_secret(validated(Cluster, {"name": path.stem} | tree, str(path)), path)


def _with_secret(cluster: Cluster, path: Path) -> Cluster:
    """A profile that holds a webhook knows where. InputError where others may read it."""
    notify, place = cluster.notify, path.resolve()
    if notify is None or notify.webhook is None:
        return cluster
    if place.stat().st_mode & 0o077:
        raise InputError(
            f"{path}: notify.webhook is a secret, and others can read the file: chmod 600 {path}"
        )
    return cluster.model_copy(update={"notify": notify.model_copy(update={"webhook_in": place})})
