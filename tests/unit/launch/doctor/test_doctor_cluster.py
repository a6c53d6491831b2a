"""Slurm and profiles, with stand-ins for Slurm's commands on the PATH."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.doctor import cluster
from launch.doctor.finding import Finding
from launch.scheduler import client
from launch.scheduler.client import Partition, parse_partitions
from launch.scheduler.time_limit import minutes_of

SINFO = "gpu*|up|1-00:00:00|gpu:a100:4(S:0-1),lustre:1\ngpu*|up|1-00:00:00|(null)\ncpu|down|30:00|(null)\n"


@pytest.fixture
def slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder with Slurm's commands, and nothing else on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    for name in client.COMMANDS:
        put(folder, name, "exit 1")
    (folder / "sinfo.txt").write_text(SINFO)
    put(folder, "sinfo", f'while read line; do echo "$line"; done < {folder / "sinfo.txt"}')
    return folder


def put(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text("partition: gpu\ngpus: {type: a100}\nminutes: 60\nmax_minutes: 1440\n")
    return path


def found(name: str | None) -> dict[str, list[Finding]]:
    lines: dict[str, list[Finding]] = {}
    for line in cluster.slurm(name):
        lines.setdefault(line.name, []).append(line)
    return lines


def bad(lines: dict[str, list[Finding]]) -> list[str]:
    assert all(line.todo for some in lines.values() for line in some if line.status != "ok")
    return [line.found for some in lines.values() for line in some if line.status == "bad"]


def statuses(lines: dict[str, list[Finding]]) -> set[str]:
    return {line.status for some in lines.values() for line in some}


def test_no_slurm_is_ok(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in (None, "local"):
        lines = found(name)
        assert statuses(lines) == {"ok"}
        assert lines["Slurm"][0].found == "no Slurm here; --cluster local trains without it"


def test_a_profile_without_slurm_is_bad(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, profile: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert bad(found(str(profile))) == ["its commands are not here"]


def test_a_profile_that_fits(slurm: Path, profile: Path) -> None:
    lines = found(str(profile))
    assert statuses(lines) == {"ok"}
    assert lines["controller"][0].found == "answers: cpu, gpu"
    assert lines["profile"][0].found == "mine: partition gpu is up"
    assert lines["profile: time"][0].found == "gpu allows 1440 minutes, the profile asks for 60"
    assert lines["profile: GPUs"][0].found == "gpu has gpu:a100"


def test_without_a_profile_slurm_alone_is_looked_at(slurm: Path) -> None:
    lines = found(None)
    assert statuses(lines) == {"ok"}
    assert set(lines) == {"profile", "Slurm", "controller"}
    assert "box" in lines["profile"][0].found


def test_the_default_partition(slurm: Path, profile: Path) -> None:
    profile.write_text("minutes: 60\n")
    assert found(str(profile))["profile"][0].found == "mine: partition gpu is up"
    (slurm / "sinfo.txt").write_text(SINFO.replace("*", ""))
    assert bad(found(str(profile))) == ["mine: no default partition"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("partition: fast\n", "mine: no partition 'fast'"),
        ("partition: cpu\ngpus: {form: none}\nminutes: 30\n", "mine: partition cpu is down"),
        ("partition: gpu\nminutes: 1441\n", "gpu allows 1440 minutes, the profile asks for 1441"),
        ("partition: gpu\ngpus: {type: h100}\n", "gpu has no gpu:h100"),
        ("partition: cpu\nminutes: 30\n", "cpu has no GPUs"),
    ],
)
def test_a_profile_that_does_not_fit(slurm: Path, profile: Path, text: str, what: str) -> None:
    profile.write_text(text)
    assert what in bad(found(str(profile)))


def test_more_time_than_there_is_may_be_asked_for(slurm: Path, profile: Path) -> None:
    profile.write_text("partition: gpu\nmax_minutes: 2000\n")
    (line,) = found(str(profile))["profile: time"]
    assert line.status == "warn"
    assert line.todo == "set max_minutes: in the profile to 1440"


@pytest.mark.parametrize("name", ["nowhere", "/no/such/file.yaml"])
def test_a_wrong_profile_is_bad_and_hides_nothing(slurm: Path, name: str) -> None:
    lines = found(name)
    assert len(bad(lines)) == 1
    assert name in bad(lines)[0]
    assert lines["controller"][0].status == "ok"


def test_a_damaged_profile_is_bad(slurm: Path, profile: Path) -> None:
    profile.write_text("partitoin: gpu\n")
    assert "did you mean 'partition'?" in bad(found(str(profile)))[0]


@pytest.mark.parametrize("script", ["exit 1", ":", "exec /bin/sleep 60"])
def test_a_controller_that_does_not_answer(
    slurm: Path, profile: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(slurm, "sinfo", script)
    monkeypatch.setattr(cluster, "SECONDS", 0.5)
    assert found(None)["controller"][0].status == "warn"
    assert len(bad(found(str(profile)))) == 1


def test_a_missing_command_is_bad(slurm: Path) -> None:
    (slurm / "scancel").unlink()
    assert bad(found(None)) == ["missing: scancel"]


def test_partitions_are_read() -> None:
    text = "a*|up|infinite|gpu:2\nb|drain|2:00:00|gpu:h100_80.gb:8(S:0),gpu:t4:1,mygpu:3\nnonsense\n"
    assert parse_partitions(text) == [
        Partition("a", True, True, None, ("gpu",)),
        Partition("b", False, False, 120, ("gpu:h100_80.gb", "gpu:t4")),
    ]
    assert parse_partitions("") == []


@pytest.mark.parametrize(
    ("limit", "minutes"),
    [("infinite", None), ("n/a", None), ("30:00", 30), ("2:00:00", 120), ("1-12:30:00", 2190), ("0:30", 1)],
)
def test_time_limits_are_read(limit: str, minutes: int | None) -> None:
    assert minutes_of(limit) == minutes
