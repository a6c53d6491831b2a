"""The configuration files of a box, as text. Times are short: a fault is noticed in seconds, not minutes."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """What a box is; kept in its folder as box.json."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    folder: Path
    """Where it is: a copy of the file elsewhere makes no box, which ``down`` would remove."""
    nodes: int = Field(ge=1, le=64)
    gpus: int = Field(ge=0, le=64)
    cpus: int = Field(ge=1, le=4096)
    memory: int = Field(ge=1)
    """MiB that a node claims; every node claims the whole machine."""
    accounting: bool
    private: bool
    """Each node in UTS and mount namespaces of its own: its host name, and /etc/hosts with all nodes."""
    host: str
    """Name and address that the daemons listen on; without namespaces this machine's own."""
    address: str
    version: list[int]
    """Slurm's, such as [22, 5, 8]."""
    port: int = Field(ge=1, le=65535)
    """The first of 2 + nodes ports: slurmctld, slurmdbd, then each slurmd."""
    bind: bool = False
    """Tasks run on their own cores (task/affinity), which every node counts from 0."""

    @property
    def names(self) -> list[str]:
        """Names of the nodes: n1, n2, ..."""
        return [f"n{i + 1}" for i in range(self.nodes)]


def slurm_conf(folder: Path, box: Settings, *, daemons: bool) -> str:
    """slurm.conf, for the daemons and their jobs or for commands of people.

    The daemons listen on what their host name resolves to (loopback), and so do the commands where that name
    is theirs too. In another namespace the host name may resolve to an address that the daemons cannot reach:
    there a command such as srun listens everywhere, for as long as it runs.
    """
    accounting = f"""
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost={box.address}
AccountingStoragePort={box.port + 1}
AccountingStoragePass={folder}/munge/socket
AccountingStorageTRES=gres/gpu
"""
    listen = "NoInAddrAny,NoCtldInAddrAny" if daemons or not box.private else "NoCtldInAddrAny"
    old = box.version < [23, 2]
    signal = "SlurmctldParameters=preempt_send_user_signal" if old else "PreemptParameters=send_user_signal"
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={name if box.private else box.host} NodeAddr={box.address} "
        f"Port={box.port + 2 + i} CPUs={box.cpus} RealMemory={box.memory}"
        + (f" Gres=gpu:{box.gpus}" if box.gpus else "")
        for i, name in enumerate(box.names)
    )
    return f"""# Written by slurm/box.py; gone with the box.
ClusterName=box
SlurmctldHost={box.host}({box.address})
SlurmctldPort={box.port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
# A requeued job is eligible only when the credentials of its last run have expired.
AuthInfo=socket={folder}/munge/socket,cred_expire=10
CommunicationParameters={listen}
DebugFlags=NO_CONF_HASH
PlugStackConfig={folder}/etc/plugstack.conf

StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/run/slurmctld.slurm-pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdPidFile={folder}/run/%n.slurm-pid
SlurmdLogFile={folder}/log/%n.log
SlurmdSpoolDir={folder}/spool/%n
SlurmdParameters=config_overrides
MailProg=/bin/true

# linuxproc follows children into sessions of their own, as cgroups do on a real cluster.
ProctrackType=proctrack/linuxproc
TaskPlugin={"task/affinity" if box.bind else "task/none"}
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU={box.memory // box.cpus}
GresTypes=gpu
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
{accounting if box.accounting else "AccountingStorageType=accounting_storage/none"}

JobRequeue=1
ReturnToService=2
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=5
MessageTimeout=5
BatchStartTimeout=10
SchedulerParameters=bf_interval=2,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
# Preemption sends the job's own --signal first.
{signal}

{nodes}
PartitionName=low Nodes=ALL Default=YES State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=high Nodes=ALL State=UP PriorityTier=10 PreemptMode=OFF
"""


def slurmdbd_conf(folder: Path, box: Settings) -> str:
    """slurmdbd.conf: accounting in MariaDB through a Unix socket."""
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost={box.host}
DbdAddr={box.address}
DbdPort={box.port + 1}
CommunicationParameters=NoInAddrAny
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.slurm-pid
"""


def hosts(box: Settings, machine: str, original: str) -> str:
    """/etc/hosts of the nodes: every name of the box is on loopback."""
    return f"{box.address} localhost {box.host} {' '.join(box.names)} {machine}\n{original}"
