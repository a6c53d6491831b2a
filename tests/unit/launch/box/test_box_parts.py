"""The box without Slurm: its files, its processes and its one-line errors."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from diffbase.cli import InputError
from launch.box import conf, machine, processes
from launch.box.conf import Settings
from launch.box.daemons import Box

REPOSITORY = Path(__file__).resolve().parents[4]
# fmt: off
BOX = Settings(
    folder=Path("/b"), nodes=2, gpus=2, cpus=4, memory=8000, accounting=True, private=True, host="ctl",
    address="127.0.0.1", version=[22, 5, 8], port=12000,
)
# fmt: on


def keys(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if line and not line.startswith("#"))


def test_configuration_of_the_daemons() -> None:
    text = conf.slurm_conf(Path("/b"), BOX, daemons=True)
    assert keys(text)["SlurmctldHost"] == "ctl(127.0.0.1)"
    assert keys(text)["CommunicationParameters"] == "NoInAddrAny,NoCtldInAddrAny"
    assert keys(text)["AccountingStoragePass"] == "/b/munge/socket"  # else slurmdbd takes munge's own socket
    nodes = re.findall(r"NodeName=(\w+) NodeHostname=(\w+) NodeAddr=([\d.]+) Port=(\d+) .* Gres=gpu:2", text)
    assert nodes == [("n1", "n1", "127.0.0.1", "12002"), ("n2", "n2", "127.0.0.1", "12003")]
    for key, value in keys(text).items():
        if value.startswith("/") and key != "MailProg":
            assert value.startswith("/b/"), f"{key}={value}: all that a box writes is in its folder"


def test_configuration_follows_what_was_asked() -> None:
    plain = BOX.model_copy(update={"private": False, "host": "vm", "gpus": 0, "accounting": False})
    text = conf.slurm_conf(Path("/b"), plain, daemons=True)
    assert "NodeName=n2 NodeHostname=vm " in text and "Gres=gpu" not in text
    assert keys(text)["AccountingStorageType"] == "accounting_storage/none"
    newer = conf.slurm_conf(Path("/b"), BOX.model_copy(update={"version": [23, 11, 4]}), daemons=True)
    assert keys(newer)["PreemptParameters"] == "send_user_signal"
    assert "SlurmctldParameters" not in keys(newer)


def test_a_process_is_its_number_and_its_start(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    processes.launch(["sleep", "60"], pid_file, tmp_path / "log", dict(os.environ))
    pid = processes.running(pid_file)
    assert pid and processes.start_time(pid)
    started = pid_file.read_text()
    pid_file.write_text(f"{pid} 1\n")  # as if the number had gone to another process
    processes.end(pid_file)
    assert processes.start_time(pid) and not pid_file.exists()
    pid_file.write_text(started)
    processes.end(pid_file)
    assert processes.start_time(pid) is None and not pid_file.exists()
    processes.end(pid_file)  # nothing to end is fine


def test_kill_takes_one_that_ignores_sigterm() -> None:
    deaf = subprocess.Popen(
        ["sh", "-c", "trap '' TERM; echo on; while :; do sleep 1; done"], stdout=subprocess.PIPE
    )
    assert deaf.stdout and deaf.stdout.readline() == b"on\n"
    began = time.monotonic()
    processes.kill([deaf.pid])
    assert time.monotonic() - began < 2 and deaf.wait() == -9


def test_own_namespace_is_never_a_node() -> None:
    assert processes.sharing_host_name(os.getpid()) == []


def test_processes_of_a_node_without_namespaces(tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    env = {"SLURM_CONF": str(conf), "SLURMD_NODENAME": "n2"}
    with subprocess.Popen(["sleep", "60"], env=os.environ | env) as task:
        try:
            assert processes.of_slurm_node(conf, tmp_path / "n2.log", "n2") == [task.pid]
            assert processes.of_slurm_node(conf, tmp_path / "n1.log", "n1") == []
            assert processes.of_slurm_node(tmp_path / "other", tmp_path / "n2.log", "n2") == []
        finally:
            task.kill()


def test_ports_are_free_and_below_the_kernels_own(tmp_path: Path) -> None:
    port = machine.free_ports(4, "127.0.0.1", tmp_path)
    assert 10000 <= port < 30000 and machine.free_ports(4, "127.0.0.1", tmp_path) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port + 2))
        assert machine.free_ports(4, "127.0.0.1", tmp_path) > port + 2 or port > 29000


def test_device_where_mknod_is_not_permitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "mknod", forbidden)
    machine.fake_device(tmp_path / "gpu0")
    assert stat.S_ISREG((tmp_path / "gpu0").stat().st_mode)


def test_missing_programs_are_named_with_their_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(machine, "search_path", lambda: str(tmp_path))
    with pytest.raises(InputError, match=r"munged, slurmctld.* not found: apt-get install slurm-wlm munge"):
        Box(tmp_path / "box").up(2, 2, None, accounting=True, private=True)
    assert not (tmp_path / "box").exists()


def test_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="needs root"):
        Box(tmp_path).up(2, 2, None, accounting=True, private=True)


def test_somebodys_folder_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr("launch.box.daemons.missing_programs", lambda accounting: [])
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(InputError, match="not empty and no box"):
        Box(tmp_path).up(2, 2, None, accounting=True, private=True)
    Box(tmp_path).down()
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid():
        pytest.skip("a box is root's")
    monkeypatch.setattr("launch.box.daemons.missing_programs", lambda accounting: [])


@pytest.mark.parametrize("fault", ["a stranger's", "everybody's", "in everybody's"])
def test_a_folder_that_others_can_change_is_refused(tmp_path: Path, programs: None, fault: str) -> None:
    """Root would end the processes whose numbers stand in it, and run daemons with its files."""
    tmp_path.chmod(0o755)
    folder = tmp_path / "above" / "box"
    (folder / "run").mkdir(parents=True)
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        (folder / "run/slurmctld.pid").write_text(f"{bystander.pid} {processes.start_time(bystander.pid)}\n")
        (folder / "box.json").write_text(BOX.model_copy(update={"folder": folder}).model_dump_json())
        if fault == "a stranger's":
            os.chown(folder, 65534, 65534)
        else:
            (folder if fault == "everybody's" else folder.parent).chmod(0o777)
        box = Box(folder)
        up = partial(box.up, 2, 2, None, accounting=True, private=True)
        # What they ask for loads Slurm's plugins from where a file in the folder says.
        for act in (
            up,
            box.down,
            box.settings,
            partial(box.kill_node, "n1", True),
            partial(box.start_node, "n1"),
        ):
            with pytest.raises(InputError, match=r"belongs to nobody|can be written by everybody"):
                act()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("text", ["{}", "[]", "x", '{"nodes": 1}', "a box elsewhere"])
def test_down_removes_no_folder_that_is_no_box(tmp_path: Path, programs: None, text: str) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "thesis.tex").touch()
    (tmp_path / "box.json").write_text(BOX.model_dump_json() if text == "a box elsewhere" else text)
    with pytest.raises(InputError, match=r"box\.json: (not a|tells of a box in /b)"):
        Box(tmp_path).down()
    assert (tmp_path / "thesis.tex").exists()


def test_only_its_owner_can_hold_a_boxs_lock(tmp_path: Path) -> None:
    (tmp_path / "lock").touch(0o644)
    with Box(tmp_path)._locked():
        assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--nodes", "0"], "error: --nodes 0: from 1 to 64"),
        (["env"], "error: no box in"),
        (["kill-node", "n1"], "error: "),
        (["go"], "error: argument command: invalid choice"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], said: str, tmp_path: Path) -> None:
    home = os.environ | {"HOME": str(tmp_path)}
    command = [sys.executable, str(REPOSITORY / "slurm/box.py"), *arguments]
    done = subprocess.run(command, env=home, cwd="/", capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr.startswith(said) and done.stderr.count("\n") == 1
