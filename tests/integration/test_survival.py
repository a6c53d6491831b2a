"""What happens to runs: signals, kills at any moment, a rank that hangs, a gradient that is no number."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch

from benchmarks import kill_training
from benchmarks.kill_training import PATIENCE, Ranks
from diffbase import exits, ledger
from diffcore.runs import checkpoint
from diffcore.runs.export import export
from diffcore.runs.model import load_network
from diffcore.runs.source import find
from diffcore.runs.stored.record import read_state
from tests.integration.conftest import Train
from tests.support.numerics import plain_loop, saved


def test_a_signal_to_one_rank_saves_on_all_and_loses_no_step(train: Train, small: Path) -> None:
    ranks = Ranks(small, 2, "--train.steps", "2000", "--train.checkpoint_every", "1000")
    try:
        ranks.until_step(7)
        ranks.processes[1].send_signal(signal.SIGUSR2)
        assert ranks.codes() == [exits.PREEMPTED] * 2
    finally:
        ranks.kill()
    [folder] = checkpoint.complete(ranks.run)
    state = read_state(folder)
    assert state.step == ranks.step() and 7 <= state.step < 1000
    resumed = train("--train.steps", str(state.step + 2), ranks=2)
    assert f"from step {state.step}" in resumed.out
    assert [e["event"] for e in ledger.events(ranks.run)].count("preempted") == 1


def test_kills_at_any_moment_change_nothing(packed: Path, tmp_path: Path) -> None:
    found = kill_training.trial(tmp_path, packed, kills=3, ranks=2, zero=2, seed=1)
    assert found["of"] == {"a rank": 1, "all": 1, "in a save": 1} and found["bit_for_bit"]


def test_a_rank_that_hangs_ends_the_other_with_its_stacks(small: Path) -> None:
    ranks = Ranks(small, 2, "--train.steps", "2000", "--guards.hang_seconds", "4", "--memory.trace", "false")
    try:
        ranks.until_step(3)
        ranks.processes[1].send_signal(signal.SIGSTOP)
        assert ranks.processes[0].wait(PATIENCE) == exits.RETRYABLE
    finally:
        ranks.kill()
    assert "training/" in (ranks.run / "stacks" / "attempt-0-rank-0.txt").read_text()
    assert "hang" in [e["event"] for e in ledger.events(ranks.run)]


def test_a_rank_that_never_comes_ends_the_others(small: Path) -> None:
    ranks = Ranks(small, 2, "--guards.start_seconds", "12")
    try:
        os.killpg(ranks.processes[1].pid, signal.SIGKILL)  # before the rendezvous: it has not imported torch
        assert ranks.processes[0].wait(PATIENCE) == exits.RETRYABLE
    finally:
        ranks.kill()
    log = (small.parent / "rank-0.log").read_text()
    assert "s in rendezvous (guards.start_seconds 12)" in log
    assert not ranks.run.exists()


@pytest.mark.parametrize(
    "settings",
    [
        ("--engine.zero", "0", "--engine.precision", "fp16"),
        ("--engine.zero", "2", "--engine.offload", "optimizer", "--engine.precision", "bf16"),
        ("--engine.zero", "3", "--engine.offload", "parameters"),
    ],
    ids=" ".join,
)
def test_precisions_and_offload_learn_and_resume(
    settings: tuple[str, ...], train: Train, small: Path
) -> None:
    plain = plain_loop(small, 4)["weights"]
    train(*settings, "--train.steps", "2", ranks=2)
    train(*settings, ranks=2)
    got = saved(small.parent / "run")["weights"]
    apart = sum((got[n] - t).square().sum() for n, t in plain.items()).sqrt()
    size = sum(t.square().sum() for t in plain.values()).sqrt()
    assert apart < 0.02 * size


def test_fp16_on_a_cpu_is_refused_in_one_line(train: Train, small: Path) -> None:
    finished = train("--engine.precision", "fp16", "--engine.zero", "1", check=False)
    assert finished.code == exits.BAD_INPUT
    assert "engine.precision fp16 with ZeRO-1 needs a GPU" in finished.err and "Traceback" not in finished.err


def test_an_export_and_a_run_start_another(train: Train, small: Path, tmp_path: Path) -> None:
    train("--train.steps", "2")
    run = small.parent / "run"
    export(run, tmp_path / "out")
    network = load_network(tmp_path / "out")
    averaged = checkpoint.read_weights(checkpoint.complete(run)[-1], "ema")
    assert all(torch.equal(p, averaged[n]) for n, p in network.named_parameters())
    assert "131,171 parameters" in (tmp_path / "out" / "README.md").read_text()
    run.rename(small.parent / "first")
    assert find(small.parent / "first").weights("ema").keys() == averaged.keys()
    source = tmp_path / "out"
    train("--init_from", str(source), "--train.steps", "1", "--optimizer.lr", "1e-12", ranks=2)
    got = saved(run)["weights"]
    assert all(torch.allclose(got[n], t, atol=1e-6) for n, t in averaged.items())
    run.rename(small.parent / "second")
    finished = train("--init_from", str(source), "--model.channels", "16,48", check=False)
    assert finished.code == exits.BAD_INPUT and "this model has" in finished.err


def test_a_loss_that_rises_rolls_back_once_and_then_ends_the_run(train: Train, small: Path) -> None:
    # So low a bound that the noise of a batch is an explosion
    finished = train("--guards.explosion", "1.05", "--train.steps", "60", check=False)
    assert finished.code == exits.FATAL and "1 rollbacks were made" in finished.err
    run = small.parent / "run"
    [rollback] = [e for e in ledger.events(run) if e["event"] == "rollback"]
    lines = [json.loads(line) for line in (run / "metrics.jsonl").open()]
    steps = [line["step"] for line in lines]
    assert steps == list(range(1, steps[-1] + 1))  # what was undone is not there twice
    rates = {line["step"]: line["train/learning_rate"] for line in lines}
    assert rates[rollback["step"]] == 1e-3 and rates[rollback["step"] + 1] == 5e-4


def test_validation_figures_stand_where_they_were_measured(train: Train, small: Path) -> None:
    train("--train.steps", "7", "--train.checkpoint_every", "4", "--validation.every", "3")
    lines = [json.loads(line) for line in (small.parent / "run" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines if "validation/loss" in line] == [3, 4, 6, 7]
