"""What clusters do to jobs, done to real jobs on a real Slurm: each goes on by itself, or ends as it should.

    python benchmarks/job_faults.py [--only crash ...] [--together crash node] [--box DIR] [--keep DIR]

Needs root and Slurm's packages (docs/slurm-box.md). Submits a small training run by launch/submit.py to a box
of two nodes and lets it be, for its final weights; then one run for each fault of ``FAULTS``, which must end
with the same weights, moving averages and optimizer moments bit for bit and every step taken once; and one
for each of ``ENDINGS``, which have an outcome of their own. ``--together``: the faults meet one run, in turn.
Prints one JSON object: for each fault seconds until it was noticed and until the first new step, of these the
seconds that Slurm let the job wait, and the steps that were taken twice. The exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from diffcore import ledger
from diffcore.exits import BAD_INPUT
from launch.env import ports
from shards import pack
from shards.attributes import CARTOON_SET, format_csv
from slurm import processes
from slurm.box_daemons import Box

REPOSITORY = Path(__file__).resolve().parents[1]
STEPS = 200
EVERY = 20
"""Steps between two checkpoints."""
HANG = 8
"""Seconds without a sign of life that count as a hang."""
PATIENCE = 150.0
"""Seconds that a job may take to anything."""
OVER = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
"""States of a job that is over."""
TELLING = ("ended", "hang", "failed", "preempted")
"""Events of the ledger that say that something happened."""

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
train: {{steps: {STEPS}, log_every: 1, checkpoint_every: {EVERY}, deterministic: true}}
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
        folders = (self.run / "checkpoints").glob("step-*/COMPLETE")
        return max((int(path.parent.name.removeprefix("step-")) for path in folders), default=0)

    @property
    def state(self) -> str:
        return self.lab.ask("squeue", "--states=all", "-h", "-o", "%T", "-j", self.number) or "UNKNOWN"

    def pid(self, rank: int) -> int:
        """Process number of a rank's training process."""
        marks = {f"RANK={rank}", f"SLURM_JOB_ID={self.number}"}
        for pid in processes.everything():
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if len(command) > 1 and command[1].endswith(b"/diffcore/train.py"):
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
        start = max((int(e["step"]) for e in self.events("loaded")), default=0)
        self.wait("steps", lambda: self.step >= start + more and self.newest() > start)

    def finished(self) -> Outcome:
        """Wait for the good end of the run."""
        self.wait("the end", lambda: self.state in OVER)
        if self.state != "COMPLETED":
            raise FailedError(f"{self.name}: job is {self.state}: {self.last_words()}")
        lines = self.metrics()
        if [line["step"] for line in lines] != list(range(1, STEPS + 1)):
            raise FailedError(f"{self.name}: steps are missing or there twice")
        folder = self.run / f"checkpoints/step-{STEPS:08d}"
        files = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.glob("*.safetensors")}
        return Outcome(files, [float(line["train/loss"]) for line in lines])

    def last_words(self) -> str:
        logs = sorted(self.run.glob("job/*/*_0_log.out"))
        lines = logs[-1].read_text(errors="replace").strip().splitlines() if logs else []
        return " | ".join(lines[-3:])


@dataclass
class Lab:
    """A box, a packed set and a folder for runs."""

    folder: Path
    box: Box
    numbers: Iterator[int] = field(default_factory=lambda: iter(range(1000)))

    def ask(self, *command: str) -> str:
        return self.box.ask(*command, check=False)

    def prepare(self) -> None:
        """Pack 96 random pictures and write the config and the cluster's profile."""
        source = self.folder / "source"
        source.mkdir()
        random = np.random.default_rng(0)
        for i in range(96):
            labels = {a.name: int(random.integers(a.variants)) for a in CARTOON_SET}
            color = random.integers(0, 256, 3, np.uint8)
            rgba = np.dstack([np.broadcast_to(color, (32, 32, 3)), np.full((32, 32), 255, np.uint8)])
            Image.fromarray(rgba).save(source / f"cs{i}.png")
            (source / f"cs{i}.csv").write_text(format_csv(labels))
        self._pack("packed")
        (self.folder / "scratch").mkdir()
        profile = (REPOSITORY / "slurm/profiles/box.yaml").read_text()
        (self.folder / "box.yaml").write_text(profile)
        room = profile.replace("scratch_gb: 0", "scratch_gb: 0.01")
        (self.folder / "scratch.yaml").write_text(f"name: scratch\nscratch: {self.folder}/scratch\n{room}")

    def _pack(self, name: str) -> Path:
        out = self.folder / name
        # fmt: off
        options = ["--size", "16", "--crop", "32", "--jobs", "1", "--val", "0.1"]
        with contextlib.redirect_stdout(sys.stderr):
            pack.main([str(self.folder / "source"), "--out", str(out), *options])
        # fmt: on
        return out

    def submit(self, name: str, *flags: str, data: str = "packed", profile: str = "box") -> Job:
        """launch/submit.py, on two nodes of one rank each."""
        run = self.folder / f"{name}-{next(self.numbers)}"
        config = self.folder / f"{run.name}.yaml"
        config.write_text(CONFIG.replace("PACKED", str(self.folder / data)) + f"run: {run}\n")
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


# --- faults: each is done to a job that trains, which is to go on; returns when it was done ---


def crash(job: Job) -> float:
    """SIGKILL to one rank's training process."""
    os.kill(job.pid(1), signal.SIGKILL)
    return time.time()


def hang(job: Job) -> float:
    """SIGSTOP to one rank: its peers wait in a collective."""
    os.kill(job.pid(1), signal.SIGSTOP)
    return time.time()


def requeue(job: Job) -> float:
    """As an operator does it."""
    job.lab.box.ask("scontrol", "requeue", job.number)
    return time.time()


def preempt(job: Job) -> float:
    """A job of the higher partition takes both nodes for two seconds."""
    script = ["--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2"]
    job.lab.box.ask("sbatch", *script)
    return time.time()


def time_limit(job: Job) -> float:
    """The time limit comes near: Slurm sends the job's signal. The next life gets its full time again."""
    before, rank = len(job.events("preempted")), job.pid(1)
    job.lab.box.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
    until = time.monotonic() + 90  # Slurm looks at time limits twice a minute
    while len(job.events("preempted")) == before:
        if time.monotonic() > until or job.state in OVER:
            raise FailedError(f"{job.name}: no signal came; job is {job.state}")
        # Training is held back, so that it has not ended by then.
        for number, seconds in ((signal.SIGSTOP, 0.8), (signal.SIGCONT, 0.1)):
            processes.send(rank, number)
            time.sleep(seconds)
    signalled = float(job.events("preempted")[-1]["time"])
    job.wait("the requeue", lambda: job.state == "PENDING")
    job.lab.box.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    return signalled


def node(job: Job, name: str = "n2") -> float:
    """A node is lost with all that runs on it, and comes back when Slurm has noticed."""
    job.lab.box.kill_node(name, with_jobs=True)
    lost = time.time()

    def repair() -> None:
        with contextlib.suppress(FailedError):
            job.wait("NODE_FAIL", lambda: job.state != "RUNNING")
        job.lab.box.start_node(name)

    threading.Thread(target=repair).start()
    return lost


def first_node(job: Job) -> float:
    """The same to the node of rank 0 and the batch script."""
    return node(job, "n1")


def torn(job: Job) -> float:
    """SIGKILL to rank 0 while it writes a checkpoint."""
    pid, folder = job.pid(0), job.run / "checkpoints"
    until = time.monotonic() + PATIENCE
    while not any(folder.glob(".step-*.tmp")):
        if time.monotonic() > until:
            raise FailedError(f"{job.name}: no checkpoint was begun")
    os.kill(pid, signal.SIGKILL)
    return time.time()


def spoiled(job: Job) -> float:
    """The newest checkpoint is cut short, then rank 0 is killed: an older one has to do."""
    pid = job.pid(0)
    os.kill(pid, signal.SIGSTOP)  # so that no newer one comes between
    newest = next((job.run / f"checkpoints/step-{job.newest():08d}").glob("*.safetensors"))
    os.truncate(newest, newest.stat().st_size // 2)
    os.kill(pid, signal.SIGKILL)
    return time.time()


FAULTS: dict[str, Callable[[Job], float]] = {
    "crash": crash,
    "hang": hang,
    "torn": torn,
    "spoiled": spoiled,
    "requeue": requeue,
    "preempt": preempt,
    "time_limit": time_limit,
    "node": node,
    "first_node": first_node,
}


def suffer(job: Job, name: str) -> dict[str, Any]:
    """Do a fault to a job that trains and watch it go on."""
    job.wait_for_steps()
    before = job.attempt
    done = FAULTS[name](job)

    noticed = waiting = None
    reached = 0

    def next_step() -> bool:
        nonlocal noticed, waiting, reached
        if job.attempt == before:  # the next one takes up what was kept, and drops the figures after it
            reached = max(reached, job.step)
        if noticed is None:
            told = [float(e["time"]) for kind in TELLING for e in job.events(kind) if e["attempt"] == before]
            if job.state != "RUNNING":
                told.append(time.time())
            noticed = min(told, default=None)
        if waiting is None and job.state == "PENDING":
            waiting = time.time()
        return job.trains_since(before)

    job.wait("a new step", next_step)
    first = job.events("first_step")[-1]
    started = [e for e in job.events("started") if e["attempt"] == first["attempt"]][-1]
    # The step that the fault cut short does not count: the next one taken is the first after what was kept.
    return {
        "fault": name,
        "noticed_s": round((noticed or done) - done, 1),
        "first_step_s": round(first["time"] - done, 1),
        "queued_s": round(started["time"] - waiting, 1) if waiting else 0.0,
        "lost_steps": reached - (first["step"] - 1),
    }


# --- endings: what a job does that cannot simply go on ---


def cancel(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """A cancelled job stays away and leaves no process; the same command goes on with it."""
    job = lab.submit("cancel")
    job.wait_for_steps()
    pids = [job.pid(0), job.pid(1)]
    lab.box.ask("scancel", job.number)
    job.wait("the end", lambda: job.state == "CANCELLED")
    if not processes.gone(pids, 40):
        raise FailedError("cancel: a training process is left")
    time.sleep(3)
    if job.state != "CANCELLED":
        raise FailedError(f"cancel: the job is {job.state}")
    kept = job.step
    lab.resubmit(job)
    check_same(job, wanted)
    return {"ending": "cancel", "steps_before": kept}


def port_taken(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """Somebody listens on the job's port before it, and another takes the next one just before torch does."""
    blocker = lab.box.ask("sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true")
    job = lab.submit("port_taken", "--nodes", "2", "--after", blocker)
    first = next(ports(job.number, 0, 0))
    with socket.socket() as early, socket.socket() as late:
        early.bind(("", first))
        early.listen()
        lab.ask("scancel", blocker)
        job.wait("the start", lambda: job.events("started"))
        port = int(job.events("started")[-1]["port"])
        if port == first:
            raise FailedError("port_taken: the job took a port on which somebody listens")
        late.bind(("", port))  # training is still importing
        late.listen()
        job.wait("another attempt", lambda: job.attempt > 0)
        ended = job.events("ended")[0]
        check_same(job, wanted)
    return {"ending": "port_taken", "why": ended["why"], "attempts": job.attempt + 1}


def scratch_full(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """One node has no room on its scratch: it is named, and left out from then on."""
    scratch = lab.folder / "scratch"
    lab.on_node("n2", "mount", "-t", "tmpfs", "-o", "size=64k", "full", str(scratch))
    try:
        job = lab.submit("scratch_full", profile="scratch")
        job.wait("the verdict", lambda: job.events("ended"))
        why = str(job.events("ended")[0]["why"])
        job.wait("the requeue", lambda: job.state == "PENDING")
        without = lab.ask("scontrol", "show", "job", "-o", job.number)
        lab.ask("scancel", job.number)
    finally:
        lab.on_node("n2", "umount", str(scratch))
    if "n2" not in why or "ExcNodeList=n2 " not in without:
        raise FailedError(f"scratch_full: {why}")
    again = lab.submit("scratch_full", "--nodes", "1", profile="scratch")
    spec = json.loads(next(again.run.glob("job/*/job.json")).read_text())
    lab.ask("scancel", again.number)
    if spec["exclude"] != ["n2"]:
        raise FailedError(f"scratch_full: the next submission leaves out {spec['exclude']}")
    return {"ending": "scratch_full", "why": why}


def bad_data(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """A shard is damaged after the submission: one line, exit code 2, no second try."""
    data = lab._pack("bad")
    for shard in data.glob("*.tar"):
        shard.write_bytes(bytes(shard.stat().st_size))  # of the right size, or it is refused at once
    job = lab.submit("bad_data", data="bad")
    job.wait("the end", lambda: job.state == "FAILED")
    told = lab.ask("scontrol", "show", "job", "-o", job.number)
    if f"ExitCode={BAD_INPUT}:0" not in told or job.attempt != 0:
        raise FailedError(f"bad_data: {told}")
    return {"ending": "bad_data", "why": job.events("ended")[-1]["why"], "said": job.last_words()}


def fewer_nodes(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """--nodes 1-2: a node is lost for good, and the run goes on with the other one."""
    job = lab.submit("fewer_nodes", "--nodes", "1-2")
    job.wait_for_steps()
    try:
        lab.box.kill_node("n2", with_jobs=True)
        lost = time.time()
        before = job.attempt
        job.wait("a new step", lambda: job.trains_since(before))
        first = float(job.events("first_step")[-1]["time"])
        world = job.events("started")[-1]["world"]
        job.number = str(job.events("started")[-1]["job"])
        apart = max(abs(a - b) / b for a, b in zip(job.finished().losses, wanted.losses, strict=True))
    finally:
        lab.box.start_node("n2")
    if world != 1 or apart > 1e-4:
        raise FailedError(f"fewer_nodes: {world} ranks, losses {apart:.1e} apart")
    row = {"ending": "fewer_nodes", "first_step_s": round(first - lost, 1), "world": world}
    return row | {"losses_apart": apart}


ENDINGS = {
    "cancel": cancel,
    "port_taken": port_taken,
    "scratch_full": scratch_full,
    "bad_data": bad_data,
    "fewer_nodes": fewer_nodes,
}


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


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    every = [*FAULTS, *ENDINGS]
    parser.add_argument("--only", nargs="+", choices=every, metavar="X", help=f"of {', '.join(every)}")
    parser.add_argument("--together", nargs="+", choices=list(FAULTS), metavar="X", help="all to one run")
    parser.add_argument("--box", type=Path, help="a box that runs, of two nodes, instead of our own")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, kept")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the box goes down with us
    folder = args.keep or Path(tempfile.mkdtemp(prefix="job-faults-"))
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []

    def attempt(name: str, what: Callable[[], list[dict[str, Any]]]) -> None:
        begun = time.monotonic()
        try:
            found = what()
        except Exception as error:
            if not isinstance(error, FailedError):
                traceback.print_exc()
            found = [{"fault": name, "failed": str(error)}]
        for row in found:
            print(json.dumps(row), f"({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
        rows.extend(found)

    with a_box(args.box) as box:
        lab = Lab(folder.resolve(), box)
        lab.prepare()
        quiet = lab.submit("undisturbed")
        wanted = quiet.finished()

        def suffering(names: list[str]) -> list[dict[str, Any]]:
            job = lab.submit("-".join(names))
            found = [suffer(job, name) for name in names]
            check_same(job, wanted)
            return found

        if args.together:
            attempt(" ".join(args.together), lambda: suffering(args.together))
        for name in args.only or ([] if args.together else every):
            if name in FAULTS:
                attempt(name, lambda name=name: suffering([name]))
            else:
                attempt(name, lambda name=name: [ENDINGS[name](lab, wanted)])
    if not args.keep:
        shutil.rmtree(folder)
    print(json.dumps({"steps": STEPS, "hang_seconds": HANG, "rows": rows}, indent=1))
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
