"""Ranks meet on loopback, prove that they are one run's and leave nothing; strangers are refused."""

from __future__ import annotations

import datetime
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch.distributed as dist

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffbase.machine.ports import RENDEZVOUS, any_free
from diffcore.engine import rendezvous
from diffcore.engine.ranks import StrangerError

SCRIPT = """
import json, os, sys
from pathlib import Path
from diffcore.engine import rendezvous
import torch, torch.distributed as dist
rendezvous.SHARED = 2.0
out = {}
try:
    rendezvous.join("gloo", Path(sys.argv[1]))
    dist.all_reduce(total := torch.ones(1))
    out["sum"] = float(total)
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    inodes = {link.split("[")[1][:-1] for link in links if "socket:[" in link}
    lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/self/net/{name}")]
    ours = [line[1] for line in lines if line[3] == "0A" and line[9] in inodes]
    out["listens"] = sorted(address.split(":")[0] for address in ours)
    dist.barrier()
except Exception as error:
    out["error"] = f"{type(error).__name__}: {error}"
print(json.dumps(out), flush=True)
os._exit(0)
"""


@contextmanager
def ranks(folder: Path, numbers: list[int], size: int, **more: str) -> Iterator[list[subprocess.Popen[str]]]:
    script = folder.parent / "rank.py"
    script.write_text(SCRIPT)
    started = []
    try:
        for number in numbers:
            place = {"RANK": str(number), "WORLD_SIZE": str(size), "LOCAL_RANK": str(number)} | more
            env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"} | place
            command = [sys.executable, str(script), str(folder)]
            started.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True))
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def said(process: subprocess.Popen[str]) -> dict[str, object]:
    out, _ = process.communicate(timeout=60)
    tree: dict[str, object] = json.loads(out)
    return tree


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.mark.slow
def test_two_ranks_meet_on_loopback_and_leave_nothing(folder: Path) -> None:
    meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(any_free())}
    with ranks(folder, [0, 1], 2, **meet) as both:
        found = [said(rank) for rank in both]
    assert [one["sum"] for one in found] == [2.0, 2.0]
    assert [one["listens"] for one in found] == [["0100007F"] * 2, ["0100007F"]]  # the store, and gloo twice
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_one_rank_opens_no_port_of_its_own_to_meet(folder: Path) -> None:
    with ranks(folder, [0], 1) as [alone]:
        found = said(alone)
    assert found == {"sum": 1.0, "listens": ["0100007F"]}  # gloo's own


def join_by_hand(port: int) -> dist.Store:
    """What anybody on the machine can do: talk to the store at the port."""
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=datetime.timedelta(seconds=30))
    return dist.PrefixStore("diffcore/0", store)


@pytest.mark.slow
def test_a_stranger_in_the_place_of_a_rank_is_refused(folder: Path) -> None:
    """It sees the store and all that is in it, but not the secret's file."""
    port = any_free()
    with ranks(folder, [0], 2, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) as [first]:
        store = join_by_hand(port)
        store.set("here/1", "")
        token = store.get("token")
        store.set("proof/1", rendezvous._mac(token, "rank 1 of 2"))
        assert said(first)["error"] == (
            "StrangerError: rank 1 is not this run's: it does not know the attempt's secret"
        )
    assert not list(folder.iterdir())


@pytest.mark.slow
def test_a_stranger_in_the_place_of_rank_0_is_refused(folder: Path) -> None:
    port = any_free()
    store = dist.TCPStore(
        "127.0.0.1", port, is_master=True, timeout=datetime.timedelta(seconds=60), wait_for_workers=False
    )
    theirs = dist.PrefixStore("diffcore/0", store)
    secret = {"token": "t", "secret": "00" * 32}
    rendezvous._write(folder / f"{RENDEZVOUS}{port}", secret)  # the rank reads it, the stranger cannot
    with ranks(folder, [1], 2, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)) as [other]:
        theirs.set("token", "t")
        theirs.get("proof/1")
        theirs.set("all", "x" * 64)
        assert said(other)["error"] == (
            "StrangerError: rank 0 is not this run's: it does not know the attempt's secret"
        )


@pytest.mark.parametrize("fault", ["another token", "readable", "a link", "not there", "another user's"])
def test_only_a_secret_of_this_attempt_that_nobody_else_could_read_counts(
    folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendezvous, "SHARED", 0.2)
    path = folder / f"{RENDEZVOUS}1"
    if fault != "not there":
        rendezvous._write(path, {"token": "t", "secret": "aa" * 32})
        assert rendezvous._read(path, "t") == b"\xaa" * 32
    if fault == "readable":
        path.chmod(0o640)
    if fault == "a link":
        path.rename(folder / "real")
        path.symlink_to(folder / "real")
    if fault == "another user's":
        if os.geteuid():
            pytest.skip("only root gives files away")
        os.chown(path, 65534, -1)
    with pytest.raises(StrangerError, match="does this node see the same run folder"):
        rendezvous._read(path, "u" if fault == "another token" else "t")


def test_a_name_that_leads_to_loopback_is_not_listened_on_for_other_nodes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert rendezvous._listen("localhost", any_free(), here=False) is None
    with rendezvous._listen("localhost", any_free(), here=True) as listening:  # type: ignore[union-attr]
        assert listening.getsockname()[0] == "127.0.0.1"
    taken = rendezvous._listen("127.0.0.1", 0, here=True)
    assert taken is not None
    with taken, pytest.raises(rendezvous.TakenPortError, match=r"is taken, .* --master_port \d+ "):
        rendezvous._listen("127.0.0.1", taken.getsockname()[1], here=True)


@pytest.mark.slow
def test_a_group_that_was_left_has_no_threads(folder: Path) -> None:
    """One of gloo's that outlives the interpreter may abort the process: an exit code of -6 in the end."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom diffcore.engine import process_group\n"
        "def gloo():\n"
        "    names = [Path(f'/proc/self/task/{t}/comm').read_text() for t in os.listdir('/proc/self/task')]\n"
        "    return sum('gloo' in name for name in names)\n"
        "process_group.start(Path(sys.argv[1]))\nimport torch.distributed._shard.sharded_tensor\n"
        "during = gloo()\nprocess_group.stop()\nprint(during > 0, gloo())"
    )
    env = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines()[-1] == "True 0", done.stderr


@pytest.mark.parametrize(
    ("soft", "hard", "ranks", "after"),
    [
        (1024, 4096, 400, 1024),  # enough
        (1024, 4096, 1000, 1000 + rendezvous.SPARE),
        (1024, 4096, 3900, 4096),  # less to spare
        (1024, 4096, 4000, None),
        (1024, resource.RLIM_INFINITY, 8000, 8000 + rendezvous.SPARE),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 8000, resource.RLIM_INFINITY),
        (64, 128, 2, None),
        (256, 512, 2, 512),
    ],
)
def test_rank_0_may_have_a_connection_to_every_rank(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, ranks: int, after: int | None
) -> None:
    now = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: now[0])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: now.__setitem__(0, limits))
    if after is None:
        with pytest.raises(InputError, match=f"rank 0 of {ranks} needs .*allowed here are {hard}"):
            rendezvous._room_for(ranks)
    else:
        rendezvous._room_for(ranks)
    assert now[0] == (hard if after is None else after, hard)
