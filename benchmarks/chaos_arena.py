"""A contender's run of the scorecard (``chaos.py``): how it is started, and what can be seen of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import chaos_lineage
from benchmarks.job_lab import FailedError, Lab

REPOSITORY = Path(__file__).resolve().parents[1]
PEERS = REPOSITORY / "benchmarks/peers"
STEPS, EPOCH, SAMPLES = 100, 10, 80
PACE = 0.15
"""Seconds that each step takes at least."""
PATIENCE = 240.0
"""Seconds without a step after which a contender counts as hung."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY", "BOOT_FAIL", "DEADLINE")
CONFIG = f"""
seed: 3
data: {{path: PACKED}}
model: {{kind: avatar, channels: [64, 128], attention_levels: [1], heads: 2, tau_tokens: 2}}
diffusion: {{schedule: cosine, timesteps: 100, target: eps, label_dropout: 0}}
optimizer: {{lr: 1.0e-3, weight_decay: 0.01}}
batch: {{size: {SAMPLES // EPOCH}}}
engine: {{zero: 0, threads: 1}}
ema: {{decay: 0.9}}
guards: {{hang_seconds: 20}}
train: {{steps: {STEPS}, log_every: 1, checkpoint_every: {EPOCH}, deterministic: true}}
sampling: {{every: 100000, count: 4, steps: 2, guidance: 1}}
"""


@dataclass
class Entry:
    """One contender's run of the training."""

    arena: Arena
    contender: str
    run: Path
    number: str = ""
    repair: threading.Thread | None = None
    """What brings a lost node back."""
    hit: bool | None = None
    """Of ``torn``: whether the kill came before the checkpoint's end."""

    @property
    def trace(self) -> Path:
        return self.run.with_name(f"{self.run.name}.trace")

    @property
    def state(self) -> str:
        return self.arena.lab.ask("squeue", "--states=all", "-h", "-o", "%T", "-j", self.number) or "UNKNOWN"

    def passes(self) -> list[chaos_lineage.Pass]:
        return chaos_lineage.read(self.trace)

    @property
    def step(self) -> int:
        """The last step that was begun."""
        return max((s.number or 0 for s in chaos_lineage.steps(self.passes())), default=0)

    def pid(self, rank: int) -> int:
        """The newest process of a rank that has taken a step."""
        return [one for one in self.passes() if one.rank == rank][-1].pid

    def pace(self, seconds: float) -> None:
        (self.trace / "pace").write_text(str(seconds))

    def saved(self) -> list[Path]:
        """Files of the checkpoints and of what is being written, the newest last."""
        suffixes = (".pt", ".ckpt", ".safetensors")
        # diffcore's run folder holds the job's code too: to look through that gives its writes a head start.
        folder = self.run / "checkpoints" if self.contender == "diffcore" else self.run
        found = []
        for path in folder.rglob("*"):
            with contextlib.suppress(OSError):
                if path.suffix in suffixes and path.is_file() and path.name != "final.safetensors":
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def unfinished(self, path: Path) -> bool:
        """Whether the checkpoint of this file lacks its end: a COMPLETE, or a zip's directory."""
        if self.contender == "diffcore":
            return not (path.parent / "COMPLETE").exists()
        return not zipfile.is_zipfile(path)

    def final(self) -> str | None:
        """A digest of the final weights; None while there are none."""
        last = self.run / f"checkpoints/step-{STEPS:08d}"
        files = [self.run / "final.safetensors"]
        if self.contender == "diffcore":
            files = sorted(last.glob("*.safetensors")) if (last / "COMPLETE").exists() else []
        if not files or not all(path.exists() for path in files):
            return None
        return hashlib.sha256(b"".join(hashlib.sha256(p.read_bytes()).digest() for p in files)).hexdigest()

    def wait(self, what: str, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise FailedError(f"{self.run.name}: waited {seconds:.0f} s for {what}; job is {self.state}")
            time.sleep(0.1)


@dataclass
class Arena:
    """A lab, and how each contender is started in it."""

    lab: Lab
    names: Iterator[int]

    def start(self, contender: str) -> Entry:
        run = self.lab.folder / f"{contender}-{next(self.names)}"
        entry = Entry(self, contender, run)
        entry.trace.mkdir()
        entry.pace(PACE)
        if contender != "diffcore":
            run.mkdir()
        (self.lab.folder / f"{run.name}.yaml").write_text(
            CONFIG.replace("PACKED", str(self.lab.folder / "packed")) + f"run: {run}\n"
        )
        self.again(entry)
        return entry

    def again(self, entry: Entry) -> None:
        """The contender's command, given by its user."""
        config = self.lab.folder / f"{entry.run.name}.yaml"
        env = self.lab.box.env | {
            "XDG_STATE_HOME": str(self.lab.folder / "state"), "OMP_NUM_THREADS": "1",
            "CHAOS_TRACE": str(entry.trace), "CHAOS_CONFIG": str(config), "CHAOS_RUN": str(entry.run),
            "CHAOS_PYTHON": sys.executable, "CHAOS_PEERS": str(PEERS),
        }  # fmt: skip
        if entry.contender == "diffcore":
            profile = self.lab.folder / f"{entry.run.name}-box.yaml"
            export = f"export CHAOS_TRACE={entry.trace} PYTHONPATH={PEERS}"
            profile.write_text(f"{(self.lab.folder / 'box.yaml').read_text()}\nsetup: ['{export}']\n")
            command = [
                REPOSITORY / "launch/submit.py",
                "--config",
                config,
                "--cluster",
                profile,
                "--nodes",
                "2",
            ]
        elif entry.contender == "submitit":
            command = [PEERS / "by_submitit.py", config, entry.run]
        else:
            output = ["--parsable", f"--output={entry.run}/%j_%t.out", f"--job-name={entry.contender}"]
            command = [PEERS / f"{entry.contender}.sbatch"]
        program = [sys.executable] if entry.contender in ("diffcore", "submitit") else ["sbatch", *output]
        done = subprocess.run(
            [*program, *map(str, command)],
            env=env, cwd=self.lab.folder, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        if done.returncode:
            raise FailedError(f"{entry.run.name}: {done.stderr.strip()}")
        if entry.contender == "diffcore":
            events = (entry.run / "events.jsonl").read_text().splitlines()
            jobs = [e["job"] for e in map(json.loads, events) if e["event"] == "submitted"]
            entry.number = str(jobs[-1])
        else:
            entry.number = done.stdout.split()[-1]
