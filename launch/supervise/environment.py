"""Slurm's or submitit's environment -> where this process stands, and what its rank's environment is.

torch's rendezvous needs RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. The port is derived from
(job, life of the job, attempt), so that neighbours on a node and a requeued job do not meet on one; it lies
below 32768, where the kernel hands out no ports by itself; and it is tried before it is published.
"""

from __future__ import annotations

import fcntl
import os
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diffbase.machine.cores import neighbours, share
from diffbase.machine.ports import PORTS, TRIES, is_free, of_job
from launch.ask.spec import JobSpec
from launch.scheduler.nodelist import expand, tasks_per_node

SHOWN = "DIFFCORE_CUDA_VISIBLE_DEVICES"
"""What CUDA_VISIBLE_DEVICES was where a local job was submitted."""
SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Layout:
    """A rank among the job's ranks; a supervisor stands where its node's first rank does."""

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
        """Whether this is rank 0, whose supervisor decides for all."""
        return self.rank == 0

    @property
    def supervisors(self) -> int:
        """How many there are: one a node."""
        return self.world // self.local_world

    def ranks(self) -> list[Layout]:
        """Every rank of this node, of which this is the first."""
        return [replace(self, rank=self.rank + i, local_rank=i) for i in range(self.local_world)]

    @property
    def node_name(self) -> str:
        """Slurm's name of this node; the host name where Slurm's list does not have it."""
        return self.nodes[self.node] if self.node < len(self.nodes) else socket.gethostname()


def layout(environ: Mapping[str, str], ranks: int) -> Layout:
    """Where a task of submitit's stands, under srun or its local executor: at its node's first rank.

    ``ranks``: of each node. ValueError if neither started this process, or not once on each node.
    """
    if environ.get("SUBMITIT_EXECUTOR") == "local":
        return _local_layout(environ, ranks)
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
    tasks = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS") or sum(counts))
    if node >= len(counts) or set(counts) != {1} or tasks != len(counts):
        raise ValueError(f"Slurm says {tasks} tasks, and {counts} on the nodes; one on each is wanted")
    nodes = expand(environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST") or "")
    return Layout(
        job=job,
        session=f"{job}.{restart}.{environ.get('SLURM_STEP_ID', '0')}",
        restart=restart,
        rank=int(environ["SLURM_PROCID"]) * ranks,
        world=tasks * ranks,
        local_rank=0,
        local_world=ranks,
        node=node,
        nodes=tuple(nodes) or (socket.gethostname(),),
    )


def _local_layout(environ: Mapping[str, str], ranks: int) -> Layout:
    job = environ["SUBMITIT_LOCAL_JOB_ID"]
    if environ["SUBMITIT_LOCAL_NTASKS"] != "1":
        raise ValueError(f"submitit says {environ['SUBMITIT_LOCAL_NTASKS']} tasks; one is wanted")
    # The job is named after a process, whose number may come again: the time of its start tells them apart.
    stat = Path(f"/proc/{job}/stat")
    begun = stat.read_text().rpartition(")")[2].split()[19] if stat.exists() else "0"
    return Layout(
        job=job,
        session=f"{job}.local-{begun}",
        restart=0,
        rank=0,
        world=ranks,
        local_rank=0,
        local_world=ranks,
        node=0,
        nodes=(socket.gethostname(),),
    )


def ports(job: str, restart: int, attempt: int) -> Iterator[int]:
    """Candidates in the order in which they are tried."""
    return of_job(job, restart, attempt)


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
    cores = len(os.sched_getaffinity(0))
    own = len(own_cores(environ, where)) or cores
    given.setdefault("OMP_NUM_THREADS", str(threads(environ, where, cores, own)))
    return given


def own_cores(environ: Mapping[str, str], where: Layout) -> list[int]:
    """The cores that this rank alone of its node runs on: a share, where Slurm bound the supervisor to cores.

    Empty where Slurm binds nothing, or there are fewer cores than ranks: then all run on all.
    """
    kind = environ.get("SLURM_CPU_BIND_TYPE") or environ.get("SLURM_CPU_BIND", "")
    cores = os.sched_getaffinity(0)
    if not re.search("mask|map|rank|ldom", kind) or len(cores) < where.local_world:
        return []
    return share(neighbours(cores), where.local_rank, where.local_world)


def threads(environ: Mapping[str, str], where: Layout, cores: int, own: int) -> int:
    """Threads of one rank: its part of what was asked for the node, else of its ``cores``; ``own`` at most.

    ``own``: how many this rank may run on.
    """
    asked = environ.get("SLURM_CPUS_PER_TASK", "")
    all_ranks = int(asked) if asked.isdigit() else cores
    return max(1, min(own, all_ranks // where.local_world))


def scratch(cluster_scratch: Path | None, environ: Mapping[str, str], where: Layout) -> Path | None:
    """This job's own folder on the node's scratch, or None where the site or the user says nothing."""
    if cluster_scratch:
        return cluster_scratch / f"diffcore-{os.getuid()}-{where.job}"
    given = environ.get("SLURM_TMPDIR")
    return Path(given) if given else None
