"""What job_faults.py works with: a real Slurm in a box, a small packed set, and jobs that it looks into."""

from __future__ import annotations

import contextlib
import hashlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from diffbase import ledger
from launch.box import processes
from launch.box.daemons import Box
from shards import pack
from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import format_csv

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 150
EVERY = 10
"""Steps between two checkpoints."""
HANG = 20
"""Seconds without a sign of life that count as a hang: on a busy machine the start alone takes ten."""
PATIENCE = 150.0
"""Seconds that a job may take to anything."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
"""States of a job that is over."""

CONFIG = f"""
seed: 3
data: {{path: PACKED}}
model: {{kind: avatar, channels: [16, 32], attention_levels: [1], heads: 2, tau_tokens: 2}}
diffusion: {{schedule: cosine, timesteps: 100, target: v}}
optimizer: {{lr: 1.0e-3, weight_decay: 0.01}}
batch: {{size: 8}}
engine: {{zero: 2, threads: 1}}
ema: {{decay: 0.9}}
guards: {{hang_seconds: {HANG}}}
train: {{steps: STEPS, log_every: 1, checkpoint_every: {EVERY}, deterministic: true}}
sampling: {{every: 100000, count: 4, steps: 2}}
"""


class FailedError(Exception):
    """A job did not do what it should; the text says what."""


@dataclass(frozen=True)
class Outcome:
    """What a run came to: sha256 of its final tensors by file, and the loss of every step."""

    files: dict[str, str]
    losses: list[float]


@dataclass
class Job:
    """A submitted run."""

    lab: Lab
    name: str
    run: Path
    number: str

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in ledger.events(self.run) if e["event"] == kind]

    @property
    def attempt(self) -> int:
        return max((int(e["attempt"]) for e in self.events("started")), default=-1)

    def metrics(self) -> list[dict[str, Any]]:
        """The figures of each step, in the order in which training wrote them down."""
        try:
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
        except FileNotFoundError:
            return []
        found = []
        for line in lines:
            with contextlib.suppress(ValueError):  # one that is being written
                found.append(json.loads(line))
        return [line for line in found if "train/loss" in line]

    @property
    def step(self) -> int:
        return max((int(line["step"]) for line in self.metrics()), default=0)

    def newest(self) -> int:
        """Step of the newest complete checkpoint."""
        return max(self.kept(), default=0)

    def kept(self) -> list[int]:
        """Steps of the complete checkpoints."""
        folders = (self.run / "checkpoints").glob("step-*/COMPLETE")
        return [int(path.parent.name.removeprefix("step-")) for path in folders]

    @property
    def state(self) -> str:
        return self.lab.ask("squeue", "--states=all", "-h", "-o", "%T", "-j", self.number) or "UNKNOWN"

    def newest_state(self) -> str:
        """The same of the run's newest job, which a smaller one may be that took over."""
        self.number = str(self.events("submitted")[-1]["job"])
        return self.state

    def pid(self, rank: int) -> int:
        """Process number of a rank's newest training process."""
        marks = {f"RANK={rank}", f"SLURM_JOB_ID={self.number}"}
        for pid in processes.everything():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if any(word.endswith(b"/diffcore/train.py") for word in command[1:4]):
                    environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                    if marks <= set(environment.split("\0")):
                        return pid
        raise FailedError(f"{self.name}: rank {rank} has no training process")

    def wait(self, what: str, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > until:
                raise FailedError(f"{self.name}: waited {seconds:.0f} s for {what}; job is {self.state}")
            time.sleep(0.1)

    def trains_since(self, attempt: int) -> bool:
        """Whether a later attempt has taken a step."""
        return any(int(e["attempt"]) > attempt for e in self.events("first_step"))

    def wait_for_steps(self, more: int = EVERY + 5) -> None:
        """Until this attempt has taken some steps, past a checkpoint."""

        def trained() -> bool:
            if self.state in OVER:
                raise FailedError(f"{self.name}: job is {self.state} before its time: {self.last_words()}")
            start = max((int(e["step"]) for e in self.events("loaded")), default=0)
            return self.step >= start + more and self.newest() > start

        self.wait("steps", trained)

    def hold_back(self, until: str) -> float:
        """Let rank 1 run a tenth of the time, so that training goes on until the ledger says ``until``.

        Returns when that was, seconds since 1970.
        """
        before, rank, end = len(self.events(until)), self.pid(1), time.monotonic() + PATIENCE
        while len(self.events(until)) == before:
            if time.monotonic() > end or self.state in OVER:
                raise FailedError(f"{self.name}: not {until}; job is {self.state}")
            for number, seconds in ((signal.SIGSTOP, 0.8), (signal.SIGCONT, 0.1)):
                processes.send(rank, number)
                time.sleep(seconds)
        return float(self.events(until)[-1]["time"])

    def finished(self) -> Outcome:
        """Wait for the good end of the run."""
        self.wait("the end", lambda: self.state in OVER)
        if self.state != "COMPLETED":
            raise FailedError(f"{self.name}: job is {self.state}: {self.last_words()}")
        lines = self.metrics()
        if [line["step"] for line in lines] != list(range(1, self.lab.steps + 1)):
            raise FailedError(f"{self.name}: steps are missing or there twice")
        folder = self.run / f"checkpoints/step-{self.lab.steps:08d}"
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}
        return Outcome(files, [float(line["train/loss"]) for line in lines])

    def last_words(self) -> str:
        logs = sorted(self.run.glob("job/*/*_0_log.out"))
        lines = logs[-1].read_text(errors="replace").strip().splitlines() if logs else []
        return " | ".join([line for line in lines if line.startswith("error: ")] or lines[-3:])


@dataclass
class Lab:
    """A box, a packed set and a folder for runs."""

    folder: Path
    box: Box
    steps: int = STEPS
    """Of every run."""
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    def ask(self, *command: str) -> str:
        return self.box.ask(*command, check=False)

    def prepare(self, count: int = 96, val: float = 0.1) -> None:
        """Pack ``count`` random pictures, ``val`` of them held out, and write the cluster's profiles."""
        source = self.folder / "source"
        source.mkdir()
        random = np.random.default_rng(0)
        for i in range(count):
            labels = {a.name: int(random.integers(a.variants)) for a in CARTOON_SET}
            color = random.integers(0, 256, 3, np.uint8)
            rgba = np.dstack([np.broadcast_to(color, (32, 32, 3)), np.full((32, 32), 255, np.uint8)])
            Image.fromarray(rgba).save(source / f"cs{i}.png")
            (source / f"cs{i}.csv").write_text(format_csv(labels))
        self._pack("packed", val)
        (self.folder / "scratch").mkdir()
        profile = (REPOSITORY / "slurm/profiles/box.yaml").read_text()
        (self.folder / "box.yaml").write_text(profile)
        room = profile.replace("scratch_gb: 0", "scratch_gb: 0.01")
        (self.folder / "scratch.yaml").write_text(f"name: scratch\nscratch: {self.folder}/scratch\n{room}")

    def _pack(self, name: str, val: float = 0.1) -> Path:
        out = self.folder / name
        # fmt: off
        options = ["--size", "16", "--crop", "32", "--jobs", "1", "--val", str(val)]
        with contextlib.redirect_stdout(sys.stderr):
            pack.main([str(self.folder / "source"), "--out", str(out), *options])
        # fmt: on
        return out

    def submit(self, name: str, *flags: str, data: str = "packed", profile: str = "box") -> Job:
        """launch/submit.py, on two nodes of one rank each."""
        run = self.folder / f"{name}-{next(self.numbers)}"
        config = self.folder / f"{run.name}.yaml"
        text = CONFIG.replace("PACKED", str(self.folder / data)).replace("STEPS", str(self.steps))
        config.write_text(f"{text}run: {run}\n")
        job = Job(self, name, run, "")
        self.resubmit(job, *flags, profile=profile)
        return job

    def resubmit(self, job: Job, *flags: str, profile: str = "box") -> None:
        # fmt: off
        command = [
            sys.executable, str(REPOSITORY / "launch/submit.py"),
            "--config", f"{self.folder}/{job.run.name}.yaml",
            "--cluster", f"{self.folder}/{profile}.yaml", *(flags or ("--nodes", "2")),
        ]
        # fmt: on
        env = self.box.env | {"XDG_STATE_HOME": str(self.folder / "state"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=env, cwd=self.folder, capture_output=True, text=True, timeout=60)
        if done.returncode:
            raise FailedError(f"{job.name}: submit.py: exit code {done.returncode}: {done.stderr.strip()}")
        job.number = str(job.events("submitted")[-1]["job"])

    def on_node(self, name: str, *command: str) -> None:
        """Run a command in a node's own namespaces."""
        host = processes.running(self.box.folder / f"run/{name}-host.pid")
        subprocess.run(["nsenter", "-t", str(host), "--mount", "--uts", *command], check=True)


def check_same(job: Job, wanted: Outcome) -> None:
    got = job.finished()
    if got != wanted:
        parts = [name for name, digest in wanted.files.items() if got.files.get(name) != digest]
        raise FailedError(f"{job.name}: {', '.join(parts) or 'losses'} differ from the undisturbed run's")


@contextlib.contextmanager
def a_box(folder: Path | None) -> Iterator[Box]:
    """The given box, or one of our own for as long as this runs."""
    if folder is not None:
        yield Box(folder)
        return
    with tempfile.TemporaryDirectory(prefix="box-") as own:
        box = Box(Path(own))
        try:
            box.up(2, 2, None, accounting=True, private=True)
            yield box
        finally:
            box.down()
            Path(own).mkdir()  # TemporaryDirectory removes it
