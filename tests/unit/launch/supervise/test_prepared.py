"""A rank's process that has been through the preflight is, as training, what a new one would be."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diffbase.exits import DONE, FATAL, RETRYABLE
from launch.ask.profile import Cluster
from launch.supervise import supervisor
from launch.supervise.child import Child, Prepared
from launch.supervise.environment import Layout
from launch.supervise.meeting import Plan
from tests.unit.test_house import REPOSITORY

SECONDS = 60.0

# What a training's process sees of itself, before it has done anything.
SCRIPT = """
import json, os, signal, sys, threading
import __main__
before = sorted(name for name in sys.modules if name in ("torch", "deepspeed"))
threads = len(os.listdir("/proc/self/task"))
files = [os.readlink(f"/proc/self/fd/{n}") for n in range(3)]
handlers = [str(signal.getsignal(n)) for n in (2, 10, 12, 14, 15, 17)]
alarm, sockets = signal.getitimer(signal.ITIMER_REAL), 0
for name in os.listdir("/proc/self/fd"):
    try:
        sockets += os.readlink(f"/proc/self/fd/{name}").startswith("socket:")
    except OSError:
        pass
children = open(f"/proc/self/task/{os.getpid()}/children").read().split()
import random
import numpy, torch, torch.utils.data

class Squares(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i): return os.getpid() != int(os.environ["OWN"]) and i * i

if __name__ == "__main__":
    from diffcore.engine import process_group
    process_group.load()  # as training does, which sets some variables
    os.environ["OWN"] = str(os.getpid())
    loader = lambda how: torch.utils.data.DataLoader(Squares(), 4, num_workers=1, multiprocessing_context=how)
    facts = {
        "argv": sys.argv, "path": sys.path, "cwd": os.getcwd(), "threads": threads, "files": files,
        "handlers": handlers, "alarm": alarm, "sockets": sockets, "children": children,
        "mask": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), "umask": os.umask(0o22),
        "main": [__main__.__file__, __main__.__name__, __main__.__spec__, __main__.__package__ or None],
        "group": torch.distributed.is_initialized(), "cuda": torch.cuda.is_initialized(),
        "drawn": [torch.rand(3).tolist(), torch.initial_seed()] if torch.manual_seed(5) else 0,
        "unseeded": torch.random.default_generator.get_state().sum().item(),
        "omp": torch.get_num_threads(), "deterministic": torch.are_deterministic_algorithms_enabled(),
        "stdin": sys.stdin.read(), "session": os.getsid(0) == os.getpid(),
        "loaders": {how: torch.cat(list(loader(how))).tolist() for how in ("fork", "spawn", "forkserver")},
        "environ": dict(sorted(os.environ.items())), "limits": __import__("resource").getrlimit(7),
    }
    with open(os.environ["SAY"], "w") as file:
        json.dump({"pid": os.getpid(), "before": before, "facts": facts}, file)
    print("trained", flush=True)
    os._exit(7)
"""

SHORT = """
import json, os, sys
before = sorted(name for name in sys.modules if name in ("torch", "deepspeed"))
with open(os.environ["SAY"], "w") as file:
    json.dump({"pid": os.getpid(), "before": before, "environ": dict(os.environ)}, file)
os._exit(7)
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "code" / "diffcore"
    folder.mkdir(parents=True)
    (folder / "train.py").write_text(SCRIPT)
    return folder / "train.py"


class Started:
    """A prepared process of one rank, or of a rank whose peer does not come."""

    def __init__(self, tmp_path: Path, script: Path, seconds: float = SECONDS, world: int = 1) -> None:
        self.folder = tmp_path / "live"
        self.folder.mkdir(mode=0o700, exist_ok=True)
        self.env = {
            **os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu",
            "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "20479", "DIFFCORE_ATTEMPT": "0", "SAY": str(tmp_path / "said.json"), "OLD": "1",
        }  # fmt: skip
        self.words = [str(script), "--config", "some.yaml"]
        self.log = tmp_path / "log"
        self.said = tmp_path / "said.json"
        command = [sys.executable, "-m", "launch.supervise.probe.rank", *self.words]
        order = {"out": str(self.folder / "speed.json"), "seconds": seconds}
        self.process = Prepared(order, command, self.env, tmp_path, self.log)

    def until(self, condition: Callable[[], object]) -> None:
        end = time.monotonic() + SECONDS
        while not condition():
            assert time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)

    def code(self) -> int | None:
        self.until(lambda: self.process.poll() is not None)
        return self.process.poll()

    def tell(self) -> dict[str, Any]:
        """What it said once it trained."""
        self.until(lambda: self.process.poll() is not None)
        assert self.process.poll() == 7, self.log.read_text()
        tree: dict[str, Any] = json.loads(self.said.read_text())
        return tree

    def children(self) -> list[int]:
        pid = self.process.pid
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


Begin = Callable[..., Started]


@pytest.fixture
def begin(tmp_path: Path, code: Path) -> Iterator[Begin]:
    started: list[Started] = []

    def start(**options: Any) -> Started:
        started.append(Started(tmp_path, code, **options))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()


def test_it_is_what_a_new_process_would_be(begin: Begin, tmp_path: Path) -> None:
    rank = begin()
    assert rank.process.poll() is None
    assert rank.code() == DONE and json.loads((rank.folder / "speed.json").read_text())["gbps"] > 0
    assert rank.children() == []
    command = Path(f"/proc/{rank.process.pid}/cmdline").read_bytes().decode().split("\0")
    assert command[3:6] == rank.words
    env = {**rank.env, "MASTER_PORT": "20478", "DIFFCORE_ATTEMPT": "3"}
    assert rank.process.train(env)
    told = rank.tell()
    assert told["pid"] == rank.process.pid and told["before"] == ["deepspeed", "torch"]
    # multiprocessing's tracker of its loaders may still have a word when it finds that it is gone.
    assert "trained" in rank.log.read_text().splitlines()

    new = Child([sys.executable, *rank.words], env, tmp_path, rank.log)
    rank.until(lambda: new.poll() is not None)
    wanted = json.loads(rank.said.read_text())
    assert wanted["before"] == []
    for own in (told, wanted):
        assert own["facts"]["environ"].pop("OWN") == str(own["pid"])
    assert told["facts"].pop("environ").items() ^ wanted["facts"].pop("environ").items() == set()
    assert told["facts"] == wanted["facts"]
    assert all(sum(found) == 140 for found in told["facts"]["loaders"].values())


def test_what_is_loaded_before_the_fork_looks_for_no_gpu() -> None:
    """The fork could not use one then."""
    code = (
        "import torch\n"
        "def looked(*given): raise SystemExit('looked')\n"
        "for name in ('is_available', 'device_count', '_lazy_init', 'current_device'):\n"
        "    setattr(torch.cuda, name, looked)\n"
        "from launch.supervise.probe import prepared, speeds\n"
        "assert 'deepspeed' not in __import__('sys').modules\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True, timeout=SECONDS)


@pytest.mark.parametrize("changed", [{"NEW": "1"}, {"OLD": None}, {"OMP_NUM_THREADS": "2", "OLD": None}])
def test_another_environment_starts_the_script_anew(
    begin: Begin, code: Path, changed: dict[str, str | None]
) -> None:
    code.write_text(SHORT)
    rank = begin()
    assert rank.code() == DONE
    wanted = {name: value for name, value in (rank.env | changed).items() if value is not None}
    assert rank.process.train(wanted)
    told = rank.tell()
    assert told["pid"] == rank.process.pid and told["before"] == []
    # Python itself may set the one in a plain locale.
    assert {name for name, _ in told["environ"].items() ^ wanted.items()} <= {"LC_CTYPE"}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_ends_it_while_it_waits(begin: Begin, number: int) -> None:
    rank = begin()
    assert rank.code() == DONE
    rank.process.forward(number)
    rank.until(lambda: Child.poll(rank.process) is not None)
    assert rank.code() == -number and not rank.process.train(rank.env) and not rank.said.exists()


def test_it_ends_when_its_supervisor_is_gone(begin: Begin) -> None:
    rank = begin()
    assert rank.code() == DONE
    rank.process._words.close()
    rank.until(lambda: Child.poll(rank.process) is not None)
    assert Child.poll(rank.process) == RETRYABLE and not rank.said.exists()


def test_an_all_reduce_that_fails_ends_it(begin: Begin, tmp_path: Path) -> None:
    (tmp_path / "live").mkdir(mode=0o700)
    (tmp_path / "live" / "speed.json").mkdir()  # cannot be written over
    rank = begin()
    assert rank.code() == FATAL
    assert "Traceback" in rank.log.read_text()


def test_one_that_takes_too_long_ends_it_and_its_fork(begin: Begin) -> None:
    rank = begin(world=2)  # no peer comes
    rank.until(rank.children)
    [fork] = rank.children()
    rank.process.forward(signal.SIGALRM)  # as its timer would
    assert rank.code() == RETRYABLE
    assert "the all-reduce did not end within 60 s" in rank.log.read_text()
    rank.until(lambda: not _lives(fork))


def test_its_time_is_limited_from_its_start_on(begin: Begin) -> None:
    rank = begin(seconds=0.01)
    assert rank.code() == RETRYABLE
    assert "the all-reduce did not end within 0 s" in rank.log.read_text()


def test_the_fork_ends_with_it(begin: Begin) -> None:
    rank = begin(world=2)
    rank.until(rank.children)
    [fork] = rank.children()
    os.kill(rank.process.pid, signal.SIGKILL)  # alone, without its group
    rank.until(lambda: not _lives(fork))
    assert rank.code() == -signal.SIGKILL


def test_a_fork_that_is_killed_ends_it_alike(begin: Begin) -> None:
    rank = begin(world=2, seconds=10 * SECONDS)  # its own end is not what is waited for
    rank.until(rank.children)
    [fork] = rank.children()
    os.kill(fork, signal.SIGKILL)
    rank.until(lambda: not _lives(fork))
    assert rank.code() == -signal.SIGKILL, rank.log.read_text()


@pytest.mark.parametrize("there", [True, False])
def test_who_is_gone_is_started_anew(there: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = SimpleNamespace(train=lambda env: there, kill=lambda: None)
    where = Layout("7", "7.0", 0, 0, 2, 0, 1, 0, ("n1", "n2"))
    spec = SimpleNamespace(cluster=Cluster(name="box"), gpus_per_node=0)
    life: Any = SimpleNamespace(
        where=where, spec=spec, meeting=None, run_folder=tmp_path, say=print, scratch=None, logs=tmp_path,
        place=SimpleNamespace(config=tmp_path / "config.yaml"),
    )  # fmt: skip
    monkeypatch.setattr(supervisor, "Child", lambda command, *rest: ("new", command))
    one = supervisor.Supervisor(life, Path("/code"), lambda place: None)
    one._prepared[0] = waiting  # type: ignore[assignment]
    new: Any = ("new", [sys.executable, "/code/diffcore/train.py", "--config", f"{tmp_path}/config.yaml"])
    assert one._start(0, where, Plan(0, "n1", 20480)) == (waiting if there else new)
    assert one._start(1, where, Plan(1, "n1", 20480)) == new  # a later attempt's


def _lives(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False
