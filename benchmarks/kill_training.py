"""Kill a training run with SIGKILL again and again, and see whether anything is lost.

    python benchmarks/kill_training.py [--kills 100] [--ranks 2] [--zero 2] [--seed 0]

Each time one rank or all of them are killed, at a random moment or inside a save, and the same command goes
on. After the last kill the run goes to its end, and so does an undisturbed one of as many steps. Ends with
exit code 1 if weights, averages or moments differ in a bit, a step is missing or there twice, or the newest
complete checkpoint was not taken. Prints one JSON object: kills, steps that had to be done again, and the
seconds from a kill to the next new step, the imports of Python and torch among them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from diffbase import exits, ledger
from diffcore.runs import checkpoint
from diffcore.runs.stored.record import KINDS
from tests.support import small_set

TRAIN = Path(__file__).resolve().parents[1] / "diffcore" / "train.py"
PATIENCE = 180.0
"""Seconds for anything that is waited for."""

CONFIG = """
run: run
data: {path: DATA}
model: {kind: avatar, channels: [16, 32], attention_levels: [1], heads: 2, tau_tokens: 2}
diffusion: {schedule: cosine, timesteps: 100, target: v}
batch: {size: 8}
engine: {zero: ZERO, threads: 1}
train: {steps: 1, log_every: 1, checkpoint_every: 8, deterministic: true}
sampling: {every: 1000000, count: 1, steps: 1}
memory: {trace: false}
"""


class Ranks:
    """A training run of some processes, each in a group of its own; its run folder is beside its config."""

    def __init__(self, config: Path, ranks: int, *overrides: str, attempt: int = 0) -> None:
        self.run = config.parent / "run"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = []
        for rank in range(ranks):
            env = os.environ | {
                "RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1",
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), ledger.ATTEMPT: str(attempt),
            }  # fmt: skip
            command = [sys.executable, str(TRAIN), "--config", str(config), *overrides]
            with (config.parent / f"rank-{rank}.log").open("ab") as log:
                self.processes.append(
                    subprocess.Popen(command, env=env, stdout=log, stderr=log, start_new_session=True)
                )

    def step(self) -> int:
        """Steps in metrics.jsonl."""
        path = self.run / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def until(self, condition: Callable[[], object]) -> None:
        """Wait; RuntimeError if a rank ends first or it takes too long."""
        end = time.monotonic() + PATIENCE
        while not condition():
            codes = [process.poll() for process in self.processes]
            if time.monotonic() > end or any(code is not None for code in codes):
                raise RuntimeError(f"it never came; exit codes {codes}, see {self.run.parent}/rank-*.log")
            time.sleep(0.01)

    def until_step(self, step: int) -> None:
        self.until(lambda: self.step() >= step)

    def until_saving(self) -> None:
        self.until((self.run / checkpoint.SAVING).exists)

    def codes(self) -> list[int]:
        """Exit codes, when all have ended."""
        return [process.wait(PATIENCE) for process in self.processes]

    def kill(self) -> None:
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def disturb(config: Path, kills: int, ranks: int, dice: random.Random) -> list[dict[str, Any]]:
    """A run that is killed ``kills`` times, a record each."""
    run, records = config.parent / "run", []
    for attempt in range(kills):
        group = Ranks(config, ranks, "--train.steps", "1000000", attempt=attempt)
        try:
            group.until(lambda: _event(run, "first_step", attempt))  # noqa: B023
            if records:
                records[-1] |= _resumed(run, attempt, records[-1])
            way = dice.choice(["a rank", "a rank", "all", "in a save"])
            if way == "in a save":
                group.until_saving()
                time.sleep(dice.random() * 0.02)
            else:
                time.sleep(dice.random() * 1.5)
            complete = [checkpoint.step_of(folder) for folder in checkpoint.complete(run)]
            victims = group.processes if way == "all" else [dice.choice(group.processes)]
            for process in victims:
                os.killpg(process.pid, signal.SIGKILL)
            killed = time.time()
            for code in group.codes():
                if code not in (-signal.SIGKILL, exits.RETRYABLE):
                    raise SystemExit(f"kill {attempt} ({way}): exit code {code}")
            records.append(
                {
                    "way": way,
                    "killed": killed,
                    "step": group.step(),
                    "complete": max(complete, default=0),
                    "others_ended": round(time.time() - killed, 2),
                }
            )
        finally:
            group.kill()
    return records


def _event(run: Path, name: str, attempt: int) -> dict[str, Any] | None:
    return next((e for e in ledger.events(run) if e["event"] == name and e["attempt"] == attempt), None)


def _resumed(run: Path, attempt: int, record: dict[str, Any]) -> dict[str, Any]:
    loaded, first = _event(run, "loaded", attempt), _event(run, "first_step", attempt)
    assert loaded is not None and first is not None
    if loaded["step"] < record["complete"]:
        raise SystemExit(f"step {record['complete']} was complete, the run goes on from {loaded['step']}")
    return {
        "lost_steps": max(0, record["step"] - loaded["step"]),
        "seconds": round(first["time"] - record["killed"], 2),
    }


def finish(config: Path, ranks: int, steps: int, attempt: int) -> Path:
    """Train to ``steps``; the last checkpoint."""
    group = Ranks(config, ranks, "--train.steps", str(steps), attempt=attempt)
    try:
        codes = [process.wait() for process in group.processes]
    finally:
        group.kill()
    folder, _ = checkpoint.newest(config.parent / "run")
    if set(codes) != {exits.DONE} or folder is None or checkpoint.step_of(folder) != steps:
        raise SystemExit(f"{config.parent}: exit codes {codes}, last checkpoint {folder}")
    return folder


def differences(one: Path, other: Path) -> list[str]:
    """Tensors of two checkpoints that are not equal bit for bit."""
    found = []
    for kind in KINDS:
        tensors, others = (checkpoint.read_weights(folder, kind) for folder in (one, other))
        found += [f"{kind}/{name}" for name in tensors if not torch.equal(tensors[name], others[name])]
    return found


def trial(folder: Path, data: Path, kills: int, ranks: int, zero: int, seed: int) -> dict[str, Any]:
    """The whole of it in ``folder``; SystemExit with what was lost."""
    configs = []
    for name in ("disturbed", "undisturbed"):
        configs.append(folder / name / "config.yaml")
        configs[-1].parent.mkdir()
        configs[-1].write_text(CONFIG.replace("DATA", str(data)).replace("ZERO", str(zero)))
    records = disturb(configs[0], kills, ranks, random.Random(seed))
    steps = records[-1]["step"] + 20
    ends = [finish(config, ranks, steps, kills) for config in configs]
    records[-1] |= _resumed(configs[0].parent / "run", kills, records[-1])
    lines = (configs[0].parent / "run" / "metrics.jsonl").read_text().splitlines()
    if [json.loads(line)["step"] for line in lines] != list(range(1, steps + 1)):
        raise SystemExit("steps are missing or there twice in metrics.jsonl")
    if apart := differences(*ends):
        raise SystemExit(f"{len(apart)} tensors differ from the undisturbed run's: {', '.join(apart[:3])}")
    lost, seconds = [r["lost_steps"] for r in records], [r["seconds"] for r in records]
    ways = [r["way"] for r in records]
    return {
        "kills": kills,
        "of": {way: ways.count(way) for way in sorted(set(ways))},
        "ranks": ranks,
        "zero": zero,
        "steps": steps,
        "bit_for_bit": True,
        "lost_steps": {"median": statistics.median(lost), "max": max(lost)},
        "seconds_to_a_new_step": {"median": statistics.median(seconds), "max": max(seconds)},
        "seconds_until_the_others_end": max(r["others_ended"] for r in records),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--zero", type=int, default=2, choices=range(4))
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = small_set.packed(folder)
        print(json.dumps(trial(folder, data, a.kills, a.ranks, a.zero, a.seed)))


if __name__ == "__main__":
    main()
