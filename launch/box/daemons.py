"""One Slurm in one folder: made, started, made to fail for tests, and ended."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import open_lock, path_of
from diffbase.formats import json_file
from diffbase.locking.lock import until_alone
from diffbase.trust import check_folder, own_folder
from launch.box import conf, processes
from launch.box.conf import Settings
from launch.box.machine import (
    PACKAGES,
    check_root,
    fake_device,
    free_ports,
    may_unshare,
    missing_programs,
    search_path,
    write,
)

FOLDERS = ["etc", "etc/daemons", "munge", "run", "log", "state", "spool", "dev"]
LONGEST_SOCKET = 100  # bytes; the kernel allows 108 in a Unix socket's path
PATIENCE = 30.0  # seconds that a daemon, or a node, may take to answer


class Box:
    """One Slurm in one folder. Every method may be called again after it was cut short."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(os.path.abspath(path_of(folder, "--dir")))  # noqa: PTH100 - links are looked at, not followed
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SBATCH", "SQUEUE", "SINFO"))
        }
        self.env = kept | {"PATH": search_path(), "SLURM_CONF": str(self.folder / "etc/slurm.conf")}

    # --- commands ---

    def up(
        self, nodes: int, gpus: int, cpus: int | None, accounting: bool, private: bool, bind: bool = False
    ) -> Settings:
        """Start the box, or what of it does not run; returns when every node is ready for jobs."""
        check_root()
        if missing := missing_programs(accounting):
            raise InputError(
                f"{', '.join(missing)} not found: apt-get install {PACKAGES} (make system-slurm)"
            )
        # Root trusts the process numbers that stand in it, and runs daemons with the files in it.
        own_folder(self.folder, code=True)
        if self.settings() is None and self._holds_other_things():
            raise InputError(f"{self.folder} is not empty and no box: give another --dir")
        with self._locked():
            box = self.settings()
            if box is None:
                box = self._new(nodes, gpus, cpus or max(2, 2 * gpus), accounting, private, bind)
            elif (box.nodes, box.gpus, box.accounting) != (nodes, gpus, accounting):
                raise InputError(
                    f"{self.folder} has a box of {box.nodes} nodes and {box.gpus} GPUs each "
                    f"{'with' if box.accounting else 'without'} accounting: take it down first, or give --dir"
                )
            self._start(box)
        return box

    def down(self) -> None:
        """End the box's daemons and its jobs' processes, and remove its folder. Nothing to do is fine."""
        check_root()
        if not os.path.lexists(self.folder / "box.json"):
            return
        check_folder(self.folder, code=True)
        self.settings()
        with self._locked():
            # The controller first: it would requeue the jobs whose nodes go.
            processes.end(self._pid_file("slurmctld"))
            for name in sorted({path.stem.removesuffix("-host") for path in self.folder.glob("run/n*.pid")}):
                processes.kill(self._on_node(name))
                processes.end(self._pid_file(f"{name}-host"))
            for name in ("slurmdbd", "mariadbd", "munged", "ctl-host"):
                processes.end(self._pid_file(name))
            shutil.rmtree(self.folder)

    def kill_node(self, name: str, with_jobs: bool) -> None:
        """SIGKILL to a node's slurmd; ``with_jobs`` to everything on it at one moment, as a crash does."""
        self._node(name)
        if with_jobs:
            processes.kill(self._on_node(name))
        elif pid := processes.running(self._pid_file(name)):
            processes.kill([pid])

    def start_node(self, name: str) -> None:
        """Start a node's slurmd again and wait until the node takes jobs."""
        box = self._node(name)
        with self._locked():
            self._start(box)

    def settings(self) -> Settings | None:
        """What the box was made as; None where there is none. InputError for a box.json of something else."""
        path = self.folder / "box.json"
        if not os.path.lexists(path):
            return None
        check_folder(self.folder, code=True)
        box = validated(Settings, json_file.read(path), f"{path}: not a box of this version")
        if box.folder != self.folder:
            raise InputError(f"{path}: tells of a box in {box.folder}, not of one here")
        return box

    def daemons(self, box: Settings) -> dict[str, int | None]:
        """Process number of each daemon; None for one that does not run."""
        names = ["munged", *(["mariadbd", "slurmdbd"] if box.accounting else []), "slurmctld", *box.names]
        return {name: processes.running(self._pid_file(name)) for name in names}

    def ask(self, *command: str, check: bool = True) -> str:
        """Run one of Slurm's commands in the box; its output, stripped."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=PATIENCE)
        if check and done.returncode:
            raise InputError(
                f"{shlex.join(command)}: {done.stderr.strip() or f'exit code {done.returncode}'}"
            )
        return done.stdout.strip()

    # --- making ---

    def _new(self, nodes: int, gpus: int, cpus: int, accounting: bool, private: bool, bind: bool) -> Settings:
        if bind and cpus > (os.cpu_count() or 1):
            raise InputError(
                f"--bind: this machine has {os.cpu_count()} cores, and a node claims {cpus}: --cpus"
            )
        if len(str(self.folder / "mariadb.socket")) > LONGEST_SOCKET:
            raise InputError(f"{self.folder}: too long a path for Unix sockets; give a shorter --dir")
        private = private and may_unshare()
        host = "ctl" if private else socket.gethostname()
        try:
            address = "127.0.0.1" if private else socket.gethostbyname(host)
        except OSError:
            raise InputError(f"the host name {host} does not resolve: add it to /etc/hosts") from None
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
        port = free_ports(2 + nodes, address, self.folder)
        version = [int(n) for n in re.findall(r"\d+", self.ask("slurmctld", "-V"))]
        box = Settings(
            folder=self.folder, nodes=nodes, gpus=gpus, cpus=cpus, memory=memory, accounting=accounting,
            private=private, host=host, address=address, version=version, port=port, bind=bind,
        )  # fmt: skip

        # Readable by everybody, so that jobs of other users run too; what is secret has its own mode.
        os.umask(0o022)
        self.folder.chmod(0o755)
        for name in [*FOLDERS, *(f"spool/{name}" for name in box.names)]:
            (self.folder / name).mkdir(exist_ok=True)
        write(self.folder / "munge/key", os.urandom(1024), 0o400)
        etc = self.folder / "etc"
        write(etc / "slurm.conf", conf.slurm_conf(self.folder, box, daemons=False))
        write(etc / "plugstack.conf", "")
        # Slurm looks for the other files beside the one that it was given.
        daemons = etc / "daemons"
        write(daemons / "slurm.conf", conf.slurm_conf(self.folder, box, daemons=True))
        write(daemons / "slurmdbd.conf", conf.slurmdbd_conf(self.folder, box), 0o600)
        original = Path("/etc/hosts").read_text() if Path("/etc/hosts").exists() else ""
        write(etc / "hosts", conf.hosts(box, socket.gethostname(), original))
        gres = ""
        if gpus:
            for i in range(gpus):
                fake_device(self.folder / f"dev/gpu{i}")
            last = f"[0-{gpus - 1}]" if gpus > 1 else "0"
            gres = f"Name=gpu File={self.folder}/dev/gpu{last}\n"
        write(etc / "gres.conf", gres)
        write(daemons / "gres.conf", gres)
        write(self.folder / "box.json", box.model_dump_json(indent=1))  # last: from here on it is a box
        return box

    # --- starting ---

    def _start(self, box: Settings) -> None:
        munge = self.folder / "munge"
        # fmt: off
        self._daemon("munged", [
            "munged", "--foreground", "--force", f"--socket={munge}/socket", f"--key-file={munge}/key",
            f"--pid-file={munge}/pid", f"--log-file={munge}/log", f"--seed-file={munge}/seed",
        ])
        # fmt: on
        self._wait("munged", ["munge", "-n", "-S", str(munge / "socket")])
        if box.private:
            for name in (box.host, *box.names):
                self._host(name)
        if box.accounting:
            self._start_accounting(box)
        state = self.folder / "state/clustername"
        self._daemon("slurmctld", ["slurmctld", "-D", *([] if state.exists() else ["-c"])], on=box.host)
        self._wait("slurmctld", ["scontrol", "ping"])
        for name in box.names:
            self._daemon(name, ["slurmd", "-D", "-N", name], on=name)
        self._wait_for_nodes(box)

    def _start_accounting(self, box: Settings) -> None:
        data, sock = self.folder / "mariadb", self.folder / "mariadb.socket"
        if not data.exists():
            fresh = self.folder / "mariadb.new"  # one that was cut short is made again
            shutil.rmtree(fresh, ignore_errors=True)
            # fmt: off
            self.ask("mariadb-install-db", "--no-defaults", f"--datadir={fresh}", "--user=root",
                     "--auth-root-authentication-method=socket", "--skip-test-db")
            # fmt: on
            fresh.chmod(0o700)
            fresh.rename(data)
        # fmt: off
        self._daemon("mariadbd", [
            "mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={sock}", "--skip-networking",
            "--user=root", f"--pid-file={self.folder}/run/mariadbd.own-pid", "--innodb-buffer-pool-size=64M",
            "--innodb-flush-log-at-trx-commit=0",
        ])
        # fmt: on
        self._wait("mariadbd", ["mariadb", "--no-defaults", f"--socket={sock}", "-e", "select 1"])
        self._daemon("slurmdbd", ["slurmdbd", "-D"], on=box.host, MYSQL_UNIX_PORT=str(sock))
        self._wait("slurmdbd", ["sacctmgr", "-n", "list", "cluster"])
        if "box" not in self.ask("sacctmgr", "-nP", "list", "cluster", "format=cluster").split():
            self.ask("sacctmgr", "-i", "add", "cluster", "box")

    def _host(self, name: str) -> None:
        """A pretended machine: namespaces with its host name and hosts, held by a sleeping process."""
        inside = 'hostname "$0" && mount --bind "$1" /etc/hosts && exec sleep infinity'
        hosts = str(self.folder / "etc/hosts")
        command = ["unshare", "--uts", "--mount", "--propagation=slave", "sh", "-c", inside, name, hosts]
        if self._daemon(f"{name}-host", command):
            pid = processes.running(self._pid_file(f"{name}-host"))
            self._wait(f"{name}-host", ["sh", "-c", f'[ "$(nsenter -t {pid} -u hostname)" = {name} ]'])
            # The last thing done before the sleep.
            self._wait(f"{name}-host", ["grep", "-q", "/etc/hosts ", f"/proc/{pid}/mountinfo"])

    def _daemon(self, name: str, command: list[str], on: str = "", **env: str) -> bool:
        """Start a daemon that does not run, on a pretended machine where there are any; whether it did."""
        if processes.running(self._pid_file(name)):
            return False
        if host := processes.running(self._pid_file(f"{on}-host")):
            command = ["nsenter", "--target", str(host), "--uts", "--mount", *command]
        conf = {"SLURM_CONF": str(self.folder / "etc/daemons/slurm.conf")}
        log = self.folder / f"log/{name}.out"
        processes.launch(command, self._pid_file(name), log, self.env | conf | env)
        return True

    def _wait(self, name: str, question: list[str]) -> None:
        """Until a daemon answers; what it wrote, if it does not."""
        until, said = time.monotonic() + PATIENCE, ""
        while processes.running(self._pid_file(name)) and time.monotonic() < until:
            with contextlib.suppress(subprocess.TimeoutExpired):
                answer = subprocess.run(question, env=self.env, capture_output=True, text=True, timeout=10)
                if answer.returncode == 0:
                    return
                said = answer.stderr.strip()
            time.sleep(0.05)
        raise InputError(f"{name} does not answer: {said or self._last_words(name)}")

    def _wait_for_nodes(self, box: Settings) -> None:
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            states = dict(line.split() for line in self.ask("sinfo", "-Nh", "-o", "%N %T").splitlines())
            bad = [name for name in box.names if states.get(name) not in ("idle", "mixed", "allocated")]
            if not bad:
                return
            for name in bad:
                if not processes.running(self._pid_file(name)):
                    raise InputError(f"the slurmd of {name} ended: {self._last_words(name)}")
                if states.get(name, "").rstrip("*") in ("down", "drained", "inval"):
                    self.ask("scontrol", "update", f"nodename={name}", "state=resume", check=False)
            time.sleep(0.1)
        raise InputError(f"{', '.join(bad)} not ready after {PATIENCE:.0f} s; see {self.folder}/log")

    # --- helpers ---

    def _on_node(self, name: str) -> list[int]:
        """Every process on a node but the one that holds its namespaces."""
        if self._pid_file(f"{name}-host").exists():
            host = processes.running(self._pid_file(f"{name}-host"))
            return processes.sharing_host_name(host) if host else []
        conf = self.folder / "etc/daemons/slurm.conf"
        return processes.of_slurm_node(conf, self.folder / f"log/{name}.log", name)

    def _node(self, name: str) -> Settings:
        check_root()
        box = self.settings()
        if box is None:
            raise InputError(f"no box in {self.folder}: python slurm/box.py up")
        if name not in box.names:
            raise InputError(f"no node {name}; this box has {', '.join(box.names)}")
        return box

    def _pid_file(self, name: str) -> Path:
        return self.folder / "run" / f"{name}.pid"

    def _last_words(self, name: str) -> str:
        for path in (self.folder / f"log/{name}.log", self.folder / f"log/{name}.out"):
            if path.exists() and (lines := path.read_text(errors="replace").strip().splitlines()):
                return f"{lines[-1]} (see {path})"
        return "it wrote nothing"

    def _holds_other_things(self) -> bool:
        """Whether the folder was used by somebody before; not by an ``up`` that was cut short."""
        ours = {"lock", *FOLDERS}
        return self.folder.exists() and any(entry.name not in ours for entry in self.folder.iterdir())

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One command at a time changes a box."""
        path = self.folder / "lock"
        while True:
            own_folder(self.folder, code=True)
            with contextlib.suppress(FileNotFoundError), open_lock(path) as lock:
                until_alone(lock.fileno())
                # A `down` that had it meanwhile took the file with the folder.
                if path.exists() and os.path.samestat(path.stat(), os.fstat(lock.fileno())):
                    yield
                    return
