"""What a box needs of the machine that it runs on."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
from pathlib import Path

from diffbase.cli import InputError
from diffbase.machine.ports import is_free

PACKAGES = "slurm-wlm munge slurmdbd mariadb-server numactl iproute2"
PROGRAMS = ["munged", "slurmctld", "slurmd", "sbatch"]
PROGRAMS_OF_ACCOUNTING = ["slurmdbd", "mariadbd", "mariadb-install-db", "mariadb"]


def search_path() -> str:
    """PATH with sbin, where Slurm's daemons live and which is not on everybody's."""
    return f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin:/sbin"


def missing_programs(accounting: bool = True) -> list[str]:
    """The programs of a box that this machine lacks; ``PACKAGES`` has them."""
    wanted = PROGRAMS + (PROGRAMS_OF_ACCOUNTING if accounting else [])
    return [name for name in wanted if not shutil.which(name, path=search_path())]


def check_root() -> None:
    """InputError unless this process is root's."""
    if os.geteuid() != 0:
        raise InputError(
            "a box needs root, as Slurm's daemons start jobs for any user: sudo python slurm/box.py ..."
        )


def may_unshare() -> bool:
    """Whether this process may make UTS and mount namespaces."""
    return subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True).returncode == 0


def fake_device(path: Path) -> None:
    """A device file that Slurm counts as a GPU; an empty file where mknod is not permitted."""
    path.unlink(missing_ok=True)
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        path.touch()


def free_ports(count: int, address: str, folder: Path) -> int:
    """The first of ``count`` free ports in a row, sought from a place that depends on the folder.

    They lie below the ports that the kernel hands out by itself, so that they stay free.
    """
    first, last = 10000, 30000
    start = int.from_bytes(hashlib.sha256(str(folder).encode()).digest()[:4], "big") % (last - first)
    for offset in range(0, last - first, count):
        port = first + (start + offset) % (last - first)
        if all(is_free(port + i, address) for i in range(count)):
            return port
    raise InputError(f"no {count} free ports in a row between {first} and {last} on {address}")


def write(path: Path, data: str | bytes, mode: int = 0o644) -> None:
    """Write a file whose mode is ``mode`` before there is data in it."""
    path.touch(mode)  # before the data is in it
    path.chmod(mode)  # whatever the umask
    path.write_bytes(data.encode() if isinstance(data, str) else data)
