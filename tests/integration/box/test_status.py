"""What commands say of jobs on a real Slurm: sweeps point by point, failures where they belong, news sent."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launch.follow.condition import CODES
from tests.integration.box.checkout import Checkout, make_checkout
from tests.integration.box.conftest import REPOSITORY, RunningBox, wait_for


@pytest.fixture
def checkout(box: RunningBox, packed: Path, tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path / "checkout", box, packed)


def ask(checkout: Checkout, *words: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "launch.jobs", *words]
    done = subprocess.run(
        command, cwd=REPOSITORY, env=checkout.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def status(checkout: Checkout, run: Path) -> Any:
    return json.loads(ask(checkout, "status", "--json", str(run)))


def test_a_sweep_is_followed_and_told_by_points(checkout: Checkout) -> None:
    sweep = checkout.folder / "sweep.yaml"
    sweep.write_text("optimizer.lr: [1.0e-4, 2.0e-4]\n")
    text = checkout.submit("--sweep", str(sweep), "--tasks-per-node", "1", "--follow")
    assert {"000 | attempt 0 of rank 0", "001 | attempt 0 of rank 0"} <= set(text.splitlines())
    hint = next(line for line in text.splitlines() if line.startswith("follow it: "))
    words = shlex.split(hint.removeprefix("follow it: python -m launch.jobs "))
    assert "001 | attempt 0 of rank 0" in ask(checkout, *words)
    told = status(checkout, checkout.run)
    assert (told["condition"], [p["state"] for p in told["points"]]) == ("done", ["COMPLETED"] * 2)
    ask(checkout, "status", "--exit-code", str(checkout.run), code=CODES["done"])
    assert json.loads(ask(checkout, "goodput", "--json", str(checkout.run)))["points"][1]["point"] == "001"
    (row,) = json.loads(ask(checkout, "list", "--json"))
    assert [p["point"] for p in row["points"]] == ["000", "001"]


def test_a_sweep_that_slurm_refuses_leaves_nothing(checkout: Checkout) -> None:
    sweep = checkout.folder / "sweep.yaml"
    sweep.write_text("optimizer.lr: [1.0e-4, 2.0e-4]\n")
    command = checkout.command("--sweep", str(sweep), "--partition", "none", "--run", "deep/run")
    done = subprocess.run(
        command, cwd=checkout.folder, env=checkout.env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2 and "partition" in done.stderr, done.stderr
    assert not (checkout.folder / "deep").exists()


def test_a_dead_supervisor_is_a_failure_and_news(checkout: Checkout, tmp_path: Path) -> None:
    got = tmp_path / "news.jsonl"
    profile = yaml.safe_load((REPOSITORY / "slurm/profiles/box.yaml").read_text())
    profile["notify"] = {"command": ["sh", "-c", 'cat >> "$0"; echo >> "$0"', str(got)]}
    profile["prometheus"] = {"folder": str(tmp_path), "seconds": 1}
    (checkout.folder / "told.yaml").write_text(yaml.safe_dump(profile))
    checkout.acts(attempt_0=["deaf", 5], attempt_1=["hold", 9])
    job = checkout.job("--tasks-per-node", "1", "--cluster", str(checkout.folder / "told.yaml"))
    rank = int(checkout.until_trained(1)[0]["pid"])
    figures = tmp_path / f"diffcore-told-{job}.prom"
    wait_for(lambda: figures.exists() and "diffcore_step{" in figures.read_text())
    parent = int(Path(f"/proc/{rank}/stat").read_text().rpartition(")")[2].split()[1])
    assert b"launch.supervise.start" in Path(f"/proc/{parent}/cmdline").read_bytes()
    os.kill(parent, signal.SIGKILL)
    wait_for(lambda: len(checkout.events("started")) == 2, 120)
    assert status(checkout, checkout.run)["condition"] == "running"
    (checkout.folder / "go").touch()
    assert checkout.until_over(job) == "COMPLETED"

    told = status(checkout, checkout.run)
    assert (told["attempts"], told["failed"], told["fault"]["kind"]) == (2, 1, "lost")
    first, second = json.loads(ask(checkout, "goodput", "--json", str(checkout.run)))["attempts"]
    again = checkout.events("started")[1]
    # Slurm waits for some ten seconds before it starts a requeued job again: that alone is queue.
    assert (first["ended"], second["ended"]) == ("lost", "done")
    assert second["queue"] == pytest.approx(again["time"] - again["queued"], abs=2)
    assert first["hang"] == second["hang"] == 0
    news = [json.loads(line) for line in got.read_text().splitlines()]
    assert [(one["event"], one["attempt"]) for one in news] == [("requeued", 0), ("done", 1)]
    assert not figures.exists()
