"""Sweeps: what a submission leaves and prints, and how each command tells their points."""

from __future__ import annotations

import errno
import json
import shlex
from pathlib import Path

import pytest

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from launch import jobs
from launch.ask import profile, sweep
from launch.ask.spec import JobSpec
from launch.follow import points, tail
from launch.follow.run import Run
from launch.hand_over import submission
from launch.job import registry

BOX = REPOSITORY / "slurm" / "profiles" / "box.yaml"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")


def commands(tmp_path: Path, **scripts: str) -> None:
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel"):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{scripts.get(name, 'exit 1')}\n")
        path.chmod(0o755)


def ask(
    tmp_path: Path, run: Path, *flags: str, swept: str = "optimizer.lr: [1.0e-4, 3.0e-4]"
) -> tuple[list[sweep.Point], JobSpec]:
    (tmp_path / "sweep.yaml").write_text(f"{swept}\n")
    config = REPOSITORY / "configs" / "demo.yaml"
    points = sweep.load(tmp_path / "sweep.yaml", config, ["--run", str(run), *flags])
    cluster = profile.load(BOX)
    spec = JobSpec(
        cluster=cluster, job="s", nodes=1, nodes_min=1, tasks_per_node=1, gpus_per_node=0, cpus_per_task=1,
        minutes=60,
    )  # fmt: skip
    return points, spec


@pytest.fixture
def swept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A sweep of two points, job 12, of which the first has failed once and runs, and the second waits."""
    commands(tmp_path, sbatch="echo Submitted batch job 12")
    run = tmp_path / "lr [a]"
    assert submission.submit(*ask(tmp_path, run), run, here=False, follow=False) == 0
    commands(tmp_path, squeue="echo '12_0|RUNNING|1|n1|None|s'; echo '12_1|PENDING|0||Priority|s'")
    ledger.record(run / "000", "started", job="12_0", restart=0)
    ledger.record(run / "000", "ended", job="12_0", code=75, why="[n1] lost", step=3)
    ledger.record(run / "000", "started", attempt=1, job="12_0", restart=0)
    for number in range(2):
        (run / "job" / "001" / f"12_{number}_0_log.out").write_text(f"point {number}\nno end of line")
    return run


def test_what_is_printed_works_as_printed(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hint = next(line for line in capsys.readouterr().out.splitlines() if "follow it:" in line)
    words = shlex.split(hint.split("python -m launch.jobs ")[1])
    assert words == ["logs", str(swept), "--follow"]
    jobs.main(words[:2])
    assert capsys.readouterr().out.splitlines() == [
        "000 | point 0", "000 | no end of line", "001 | point 1", "001 | no end of line",
    ]  # fmt: skip


def test_following_shows_every_point_until_all_are_over(
    swept: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tail, "ASK_EVERY", 0.0)
    monkeypatch.setattr(tail, "POLL", 0.0)
    looks: list[int] = []

    def over(runs: object) -> bool:
        looks.append(len(looks))
        (swept / "job" / "001" / "12_1_0_log.out").open("a").write(f" {looks[-1]}\n")
        return len(looks) == 3

    monkeypatch.setattr(tail, "are_over", over)
    jobs.main(["logs", str(swept), "--follow"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("001")] == [
        "001 | point 1", "001 | no end of line 0", "001 |  1", "001 |  2",
    ]  # fmt: skip


def test_status_tells_point_by_point(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    jobs.main(["status", str(swept), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert (told["state"], told["condition"]) == ("1 running, 1 waiting", "running")
    assert [(p["point"], p["job"], p["state"]) for p in told["points"]] == [
        ("000", "12_0", "RUNNING"), ("001", "12_1", "PENDING"),
    ]  # fmt: skip
    assert told["points"][0]["fault"]["why"] == "[n1] lost" == told["fault"]["why"]
    jobs.main(["status", str(swept)])
    shown = capsys.readouterr().out
    assert "000 {'optimizer.lr': 0.0001}" in shown and str(swept) in shown
    jobs.main(["status", str(swept / "000")])
    assert "[n1] lost" in capsys.readouterr().out


def test_the_list_has_a_sweep_once_with_its_points(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    registry.remember(swept / "000", "12_0", "box")  # as older versions did
    capsys.readouterr()
    jobs.main(["list", "--json"])
    (row,) = json.loads(capsys.readouterr().out)
    assert row["run"] == str(swept) and [p["point"] for p in row["points"]] == ["000", "001"]


def test_goodput_of_a_sweep_is_by_points(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    jobs.main(["goodput", str(swept), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [p["point"] for p in told["points"]] == ["000"]  # the other one has not begun
    assert (swept / "000" / "goodput.svg").exists()


@pytest.mark.parametrize(
    ("access", "swept", "mode"),
    [
        ("group", "optimizer.lr: [1.0e-4, 3.0e-4]", 0o640),
        ("group", "data.path: ['https://h/a?sig=secret', 'https://h/b?sig=secret']", 0o600),
        ("private", "optimizer.lr: [1.0e-4, 3.0e-4]", 0o600),
    ],
)
def test_a_group_reads_which_points_its_sweep_has(
    access: str, swept: str, mode: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands(tmp_path, sbatch="echo Submitted batch job 12")
    monkeypatch.setattr(submission, "fingerprint_of", lambda path: None)
    run = tmp_path / "run"
    for _ in range(2):  # a new folder, and one that is there
        asked = ask(tmp_path, run, "--run_access", access, swept=swept)
        submission.submit(*asked, run, here=False, follow=False)
    lists = [run / "job" / number / "sweep.txt" for number in ("001", "002")]
    assert [path.stat().st_mode & 0o777 for path in lists] == [mode] * 2


def test_a_list_that_may_not_be_read_is_none(swept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, most: int) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    read = Run.read(swept)
    assert len(points.points(read)) == 2
    monkeypatch.setattr(points, "read_bytes", refuse)
    assert points.points(read) == []


def test_a_refused_sweep_leaves_nothing(tmp_path: Path) -> None:
    commands(tmp_path, sbatch="echo 'sbatch: error: no such partition' >&2; exit 1")
    (tmp_path / "there").mkdir()
    before = sorted(tmp_path.rglob("*"))
    run = tmp_path / "there" / "deep" / "runs"
    asked = ask(tmp_path, run)
    with pytest.raises(InputError, match="no such partition"):
        submission.submit(*asked, run, here=False, follow=False)
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "sweep.yaml"])


def test_a_refused_sweep_leaves_what_was_there(tmp_path: Path) -> None:
    commands(tmp_path)
    run = tmp_path / "run"
    (run / "001" / "job" / "001").mkdir(parents=True, mode=0o700)
    (run / "001" / "events.jsonl").touch()
    (run / "002").mkdir()
    asked = ask(tmp_path, run)
    before = sorted(run.rglob("*"))
    with pytest.raises(InputError, match="sbatch"):
        submission.submit(*asked, run, here=False, follow=False)
    assert sorted(run.rglob("*")) == before


def test_a_point_that_cannot_be_made_is_the_end_of_all(tmp_path: Path) -> None:
    commands(tmp_path, sbatch="echo Submitted batch job 12")
    run = tmp_path / "run"
    asked = ask(tmp_path, run)
    run.mkdir(mode=0o700)
    (run / "001").write_text("no folder")
    with pytest.raises((InputError, OSError)):
        submission.submit(*asked, run, here=False, follow=False)
    assert [path.name for path in run.iterdir()] == ["001"]


def test_a_sweeps_array_is_cancelled_by_its_folder(swept: Path, tmp_path: Path) -> None:
    commands(tmp_path, squeue="echo '12_0|RUNNING|1|n1|None|s'", scancel=f"echo $@ > {tmp_path}/asked")
    jobs.main(["cancel", str(swept)])
    assert (tmp_path / "asked").read_text().split() == ["12"]
