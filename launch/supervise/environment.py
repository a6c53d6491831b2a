"""Slurm's or submitit's environment -> where this process stands, and what its rank's environment is.

torch's rendezvous needs RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. The port is derived from
(job, life of the job, attempt), so that neighbours on a node and a requeued job do not meet on one; it lies
below 32768, where the kernel hands out no ports by itself; and it is tried before it is published.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from diffbase.machine.ports import is_free
from launch.ask.spec import JobSpec
from launch.scheduler.nodelist import expand, tasks_per_node

PORTS = range(20480, 32768)
TRIES = 256
SHOWN = "DIFFCORE_CUDA_VISIBLE_DEVICES"
"""What CUDA_VISIBLE_DEVICES was where a local job was submitted."""
SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Layout:
    """This process among the job's processes."""

    job: str
    session: str  # one life of the job: another one after a requeue
    restart: int
    rank: int
    world: int
    local_rank: int
    local_world: int
    node: int
    nodes: tuple[str, ...]

    @property
    def leader(self) -> bool:
        """Whether this is rank 0, which decides for all."""
        return self.rank == 0

    @property
    def node_name(self) -> str:
        """Slurm's name of this node; the host name where Slurm's list does not have it."""
        return self.nodes[self.node] if self.node < len(self.nodes) else socket.gethostname()


def layout(environ: Mapping[str, str]) -> Layout:
    """The layout of a task of submitit's, under srun or its local executor. ValueError for neither."""
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return _local_layout(environ)
    if "SLURM_PROCID" not in environ:
        raise ValueError("neither srun nor submitit started this process: SLURM_PROCID is missing")
    job = environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in environ:
        job = f"{environ['SLURM_ARRAY_JOB_ID']}_{environ['SLURM_ARRAY_TASK_ID']}"
    restart = int(environ.get("SLURM_RESTART_COUNT", "0"))
    # The step's own figures where srun gives them: the job may be larger (an allocation of salloc).
    counts = tasks_per_node(
        environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE") or "1"
    )
    node = int(environ.get("SLURM_NODEID", "0"))
    world = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or sum(counts))
    if node >= len(counts) or sum(counts) != world:
        raise ValueError(f"Slurm says {world} tasks, and {counts} on the nodes")
    nodes = expand(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "")
    return Layout(
        job=job,
        session=f"{job}.{restart}.{environ.get('SLURM_STEP_ID', '0')}",
        restart=restart,
        rank=int(environ["SLURM_PROCID"]),
        world=world,
        local_rank=int(environ.get("SLURM_LOCALID", "0")),
        local_world=counts[node],
        node=node,
        nodes=tuple(nodes) or (socket.gethostname(),),
    )


def _local_layout(environ: Mapping[str, str]) -> Layout:
    job = environ["SUBMITIT_LOCAL_JOB_ID"]
    rank, world = int(environ["SUBMITIT_LOCAL_GLOBALID"]), int(environ["SUBMITIT_LOCAL_NTASKS"])
    # The job is named after a process, whose number may come again: the time of its start tells them apart.
    stat = Path(f"/proc/{job}/stat")
    begun = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else "0"
    return Layout(
        job=job,
        session=f"{job}.local-{begun}",
        restart=0,
        rank=rank,
        world=world,
        local_rank=rank,
        local_world=world,
        node=0,
        nodes=(socket.gethostname(),),
    )


def ports(job: str, restart: int, attempt: int) -> Iterator[int]:
    """Candidates in the order in which they are tried."""
    for i in range(TRIES):
        digest = hashlib.sha256(f"{job}|{restart}|{attempt}|{i}".encode()).digest()
        yield PORTS[int.from_bytes(digest[:8], "big") % len(PORTS)]


def free_port(job: str, restart: int, attempt: int) -> int:
    """The first candidate that nobody on this machine listens on."""
    for port in ports(job, restart, attempt):
        if is_free(port):
            return port
    raise OSError(f"none of {TRIES} ports between {PORTS.start} and {PORTS.stop - 1} is free")


def address(where: Layout, interface: str | None) -> str:
    """What the other ranks call this machine by."""
    if interface:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            request = struct.pack("256s", interface.encode()[:15])
            try:
                return socket.inet_ntoa(fcntl.ioctl(probe.fileno(), SIOCGIFADDR, request)[20:24])
            except OSError as error:
                raise OSError(
                    f"network.interface {interface}: {error.strerror} on {where.node_name}"
                ) from error
    if len(where.nodes) == 1:
        return "127.0.0.1"
    for name in (where.node_name, socket.gethostname()):
        try:
            socket.getaddrinfo(name, None)
        except OSError:
            continue
        return name
    raise OSError(f"neither {where.node_name} nor {socket.gethostname()} is a name that resolves")


def rank_environment(
    environ: Mapping[str, str], where: Layout, spec: JobSpec, attempt: int, master: tuple[str, int]
) -> dict[str, str]:
    """The environment of a rank's training process. CUDA_VISIBLE_DEVICES stays as Slurm set it."""
    cluster = spec.cluster
    given = dict(environ) | cluster.env
    if interface := cluster.network.interface:
        given |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    given |= cluster.network.env
    if SHOWN in environ:
        given["CUDA_VISIBLE_DEVICES"] = environ[SHOWN]
    if not spec.gpus_per_node:
        given.setdefault("DS_ACCELERATOR", "cpu")
    given |= {
        "RANK": str(where.rank),
        "WORLD_SIZE": str(where.world),
        "LOCAL_RANK": str(where.local_rank),
        "LOCAL_WORLD_SIZE": str(where.local_world),
        "NODE_RANK": str(where.node),
        "MASTER_ADDR": master[0],
        "MASTER_PORT": str(master[1]),
        "DIFFCORE_ATTEMPT": str(attempt),
        "PYTHONUNBUFFERED": "1",
    }
    given.setdefault("OMP_NUM_THREADS", str(threads(environ, where, len(os.sched_getaffinity(0)))))
    return given


def threads(environ: Mapping[str, str], where: Layout, cores: int) -> int:
    """Threads of one rank: its own cores, of which ``cores`` are those that it may run on.

    Where Slurm binds a task to its cores, those; where it does not, what was asked for it; else a share.
    """
    asked = environ.get("SLURM_CPUS_PER_TASK", "")
    return max(1, min(cores, int(asked) if asked.isdigit() else max(1, cores // where.local_world)))


def scratch(cluster_scratch: Path | None, environ: Mapping[str, str], where: Layout) -> Path | None:
    """This job's own folder on the node's scratch, or None where the site or the user says nothing."""
    if cluster_scratch:
        return cluster_scratch / f"diffcore-{os.getuid()}-{where.job}"
    given = environ.get("SLURM_TMPDIR")
    return Path(given) if given else None
