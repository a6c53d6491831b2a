"""The job's folder in the run folder: the code, config and environment that every life of it runs with.

RUN/job/001/            one submission, owner only, but for logs and sweep.txt of run_access: group; next: 002
    code/               the checkout's tracked files, as they are on the disk now
    config.yaml         the resolved config
    job.json            JobSpec and where things are
    environment.json    variables of an allow-list, without credentials
    JOB_submitted.pkl   submitit's, JOB_RANK_log.out the ranks' output
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from diffbase.explain import validated
from diffbase.files import write_atomic, write_json
from diffbase.formats import json_file
from diffbase.redaction import without_credentials
from diffbase.system_error import is_there
from diffbase.trust import is_shown, make_folder, own_folder, show
from diffcore.config.tree import Access, Config
from diffcore.runs import run_folder
from launch.ask.spec import JobSpec

JOBS = "job"  # RUN/job
LARGEST = 4 << 20  # bytes of a job.json

_NAMES = """
PATH LD_LIBRARY_PATH PYTHONPATH VIRTUAL_ENV CONDA_PREFIX CONDA_DEFAULT_ENV LOADEDMODULES
LANG LC_ALL LC_CTYPE TZ USER HOSTNAME SLURM_CONF SUBMITIT_EXECUTOR
CUDA_VISIBLE_DEVICES CUDA_HOME CUDA_DEVICE_ORDER CUDA_LAUNCH_BLOCKING CUDA_MODULE_LOADING
CUDA_DEVICE_MAX_CONNECTIONS CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE
NCCL_DEBUG NCCL_DEBUG_SUBSYS NCCL_SOCKET_IFNAME NCCL_SOCKET_FAMILY NCCL_SOCKET_NTHREADS
NCCL_NSOCKS_PERTHREAD NCCL_IB_DISABLE NCCL_IB_HCA NCCL_IB_GID_INDEX NCCL_IB_TIMEOUT NCCL_IB_RETRY_CNT
NCCL_IB_SL NCCL_IB_TC NCCL_IB_PCI_RELAXED_ORDERING NCCL_NET NCCL_NET_PLUGIN NCCL_NET_GDR_LEVEL
NCCL_CROSS_NIC NCCL_P2P_DISABLE NCCL_P2P_LEVEL NCCL_SHM_DISABLE NCCL_ALGO NCCL_PROTO NCCL_TOPO_FILE
NCCL_BUFFSIZE NCCL_MIN_NCHANNELS NCCL_MAX_NCHANNELS NCCL_CUMEM_ENABLE NCCL_NVLS_ENABLE NCCL_TIMEOUT
GLOO_SOCKET_IFNAME UCX_TLS UCX_NET_DEVICES FI_PROVIDER FI_EFA_USE_DEVICE_RDMA
OMP_NUM_THREADS OMP_PLACES OMP_PROC_BIND MKL_NUM_THREADS KMP_AFFINITY KMP_BLOCKTIME
TORCH_NCCL_ASYNC_ERROR_HANDLING TORCH_NCCL_BLOCKING_WAIT TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC
TORCH_NCCL_TRACE_BUFFER_SIZE TORCH_DISTRIBUTED_DEBUG TORCH_CUDA_ARCH_LIST TORCH_EXTENSIONS_DIR TORCH_HOME
TORCH_LOGS PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING
DS_ACCELERATOR DS_SKIP_CUDA_CHECK DIFFCORE_ATTEMPT DIFFCORE_LOCKS DIFFCORE_PROFILES
DIFFCORE_CUDA_VISIBLE_DEVICES
"""
KEPT = frozenset(_NAMES.split())
"""Variables that are written down, name by name: of a family, one that is new may hold a secret."""


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


def log_of(folder: Path, job: str, rank: int) -> Path:
    """A rank's output in the folder that its job was submitted from, as submitit names a task's."""
    return folder / f"{job}_{rank}_log.out"


def next_place(run: Path) -> Place:
    """The folder that the next submission of ``run`` gets; nothing is made."""
    taken = [int(p.name) for p in (run / JOBS).glob("[0-9]*") if p.name.isdigit()]
    return Place(run / JOBS / f"{max(taken, default=0) + 1:03d}")


def create(
    run: Path, group: bool = False, access: Access | None = None, usual: Access | None = None
) -> Place:
    """Make that folder. InputError if others may write into the run folder or ``RUN/job``.

    What lies in it is run on every node, so the folders above count too. ``group`` as of ``check_folder``.
    ``access``: who may read the run folder; None: as chosen before, ``usual`` for a new one.
    """
    if access is None and not any(is_there(run / name) for name in (JOBS, "run.json")):
        access = usual
    own_folder(run, group=group, code=True, shown=access == "group")
    if run.stat().st_uid == os.getuid() and (access or not group):
        run_folder.set_access(run, access or run_folder.access(run))
    make_folder(run / JOBS)
    own_folder(run / JOBS, group=group, code=True)
    while True:
        place = next_place(run)
        try:
            place.folder.mkdir(mode=0o700)
        except FileExistsError:  # another submission took the number at the same moment
            continue
        if is_shown(run / JOBS):
            show(place.folder)  # for its logs
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
    """The variables that may be written down, without credentials that a value holds all the same."""
    return {name: without_credentials(value) for name, value in environment.items() if name in KEPT}
