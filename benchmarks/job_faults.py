"""What clusters do to jobs, done to real jobs on a real Slurm: each goes on by itself, or ends as it should.

    python benchmarks/job_faults.py [--only crash ...] [--together crash node] [--box DIR] [--keep DIR]
    python benchmarks/job_faults.py --random 50 --seed 0

Needs root and Slurm's packages (docs/slurm-box.md). Submits a small training run by launch/submit.py to a box
of two nodes and lets it be, for its final weights; then one run for each fault of ``FAULTS``, which must end
with the same weights, moving averages and optimizer moments bit for bit and every step taken once; and one
for each of ``ENDINGS``, which have an outcome of their own (those of ``THREE_NODES`` only if named: they need
a ``--box`` of three nodes). A ``--together`` is one run that meets several; ``--random N`` draws N faults
from ``--seed``, six to a run. Prints one JSON object: for each fault seconds until it was noticed and until
the first new step, of these the seconds that Slurm let the job wait, and the steps that were taken twice. The
exit code is 1 if one failed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.job_lab import (
    HANG,
    OVER,
    PATIENCE,
    STEPS,
    FailedError,
    Job,
    Lab,
    Outcome,
    a_box,
    check_same,
)
from diffbase.exits import BAD_INPUT
from launch.box import processes
from launch.supervise.environment import ports

TELLING = ("ended", "hang", "failed", "preempted")
"""Events of the ledger that say that something happened."""


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
    asked = time.time()
    job.hold_back("preempted")
    return asked


def time_limit(job: Job) -> float:
    """The time limit comes near: Slurm sends the job's signal. The next life gets its full time again."""
    job.lab.box.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=1")
    signalled = job.hold_back("preempted")  # Slurm looks at time limits twice a minute
    job.wait("the requeue", lambda: job.state == "PENDING")
    job.lab.box.ask("scontrol", "update", f"JobId={job.number}", "TimeLimit=30")
    return signalled


def cancel(job: Job) -> float:
    """It stays away and leaves no process; the same command goes on with it."""
    pids = [job.pid(0), job.pid(1)]
    job.lab.box.ask("scancel", job.number)
    cancelled = time.time()
    job.wait("the end", lambda: job.state == "CANCELLED")
    if not processes.gone(pids, 40):
        raise FailedError("cancel: a training process is left")
    time.sleep(3)
    if job.state != "CANCELLED":
        raise FailedError(f"cancel: the job is {job.state}")
    job.lab.resubmit(job)
    return cancelled


def node(job: Job, name: str = "n2", with_jobs: bool = True) -> float:
    """A node is lost with all that runs on it, and comes back when Slurm has noticed."""
    job.lab.box.kill_node(name, with_jobs)
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


def slurmd(job: Job) -> float:
    """SIGKILL to a node's slurmd alone: Slurm gives the node up, and what runs on it lives on."""
    lost = node(job, "n2", with_jobs=False)
    job.hold_back("preempted")
    return lost


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
    job.wait("a second checkpoint", lambda: len(job.kept()) > 1)
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
    "slurmd": slurmd,
    "cancel": cancel,
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
    if f"ExitCode={BAD_INPUT}:0" not in told or job.attempt > 0:
        raise FailedError(f"bad_data: {told}")
    return {"ending": "bad_data", "said": job.last_words()}


def fewer_nodes(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """--nodes 1-2: a node is lost for good, and the run goes on with the other one.

    Another number of ranks adds up in another order, so its losses are not the undisturbed run's. A control
    changes at the same step without a fault: bit for bit the same is wanted of it.
    """
    job = lab.submit("fewer_nodes", "--nodes", "1-2")
    job.wait_for_steps()
    try:
        lab.box.kill_node("n2", with_jobs=True)
        lost = time.time()
        before = job.attempt
        job.wait("a new step", lambda: job.trains_since(before))
        first = float(job.events("first_step")[-1]["time"])
        started = job.events("started")[-1]
        job.number, world = str(started["job"]), started["world"]
        got = job.finished()
    finally:
        lab.box.start_node("n2")
    step = int(job.events("loaded")[-1]["step"])
    control = lab.submit("control", "--nodes", "2", "--train.steps", str(step))
    control.wait("its first part's end", lambda: control.state in OVER)
    lab.resubmit(control, "--nodes", "1")
    same = control.finished()
    if world != 1 or got != same:
        raise FailedError(f"fewer_nodes: {world} ranks, or other losses or tensors than without the fault")
    apart = max(abs(a - b) / b for a, b in zip(got.losses, wanted.losses, strict=True))
    row = {"ending": "fewer_nodes", "first_step_s": round(first - lost, 1), "world": world}
    return row | {"from_step": step, "losses_apart": apart}


def bad_node(lab: Lab, wanted: Outcome) -> dict[str, Any]:
    """A rank of the same node is killed twice: the job goes on with the third node in its place."""
    job = lab.submit("bad_node")
    for _ in range(2):
        job.wait_for_steps()
        before = job.attempt
        os.kill(job.pid(1), signal.SIGKILL)
        killed = time.time()
        job.wait("a new step", lambda before=before: job.trains_since(before))
    first = float(job.events("first_step")[-1]["time"])
    out, last = [e["node"] for e in job.events("left_out")], job.events("started")[-1]["nodes"]
    if out != ["n2"] or last != ["n1", "n3"]:
        raise FailedError(f"bad_node: left out {out}, on with {last}")
    check_same(job, wanted)
    return {"ending": "bad_node", "first_step_s": round(first - killed, 1), "nodes": last}


def spare_node(lab: Lab, wanted: Outcome | None) -> dict[str, Any]:
    """A node of three has no room on its scratch, and the job wants two: it starts on the other two."""
    return _without_n2(lab, "spare_node", "2", 2)


def one_less(lab: Lab, wanted: Outcome | None) -> dict[str, Any]:
    """The same, and the job wants two or three: it starts on two, and so does the next submission."""
    return _without_n2(lab, "one_less", "2-3", 2)


def _without_n2(lab: Lab, name: str, nodes: str, left: int) -> dict[str, Any]:
    """Until a job of so many nodes has started without n2, and another one has been submitted so."""
    scratch = lab.folder / "scratch"
    shutil.rmtree(lab.folder / "state", ignore_errors=True)  # what an earlier run of this left out
    lab.on_node("n2", "mount", "-t", "tmpfs", "-o", "size=64k", "full", str(scratch))
    batch = "--batch.size=12"  # for two ranks and for three
    try:
        job = lab.submit(name, "--nodes", nodes, batch, profile="scratch")
        begun = time.monotonic()
        job.wait("the start", lambda: job.events("started") or job.newest_state() in OVER)
        seconds, started = time.monotonic() - begun, job.events("started")
        said = [e["why"] for e in job.events("ended")]
        for event in job.events("submitted"):
            lab.ask("scancel", str(event["job"]))
        if not started or started[0]["world"] != left or "n2" in started[0]["nodes"]:
            raise FailedError(f"{name}: {job.state}: {started}, {said}")
        again = lab.submit(f"{name}-again", "--nodes", nodes, batch, profile="scratch")
        lab.ask("scancel", again.number)
    finally:
        lab.on_node("n2", "umount", str(scratch))
    size = next(again.run.glob("job/*/job.json")).read_text()
    row = {"ending": name, "why": said, "nodes": started[0]["nodes"], "started_s": round(seconds, 1)}
    return row | {"refusals": len(job.events("refused")), "next_submission_nodes": json.loads(size)["nodes"]}


def other_data(lab: Lab, wanted: Outcome | None) -> dict[str, Any]:
    """A node of three sees other shards in the folder of the data: the job starts on the other two."""
    shutil.rmtree(lab.folder / "state", ignore_errors=True)
    other, packed = lab._pack(f"other-{next(lab.numbers)}"), str(lab.folder / "packed")
    index = other / "index.json"
    index.write_bytes(index.read_bytes() + b"\n")  # another fingerprint
    lab.on_node("n2", "mount", "--bind", str(other), packed)
    try:
        job = lab.submit("other_data")
        job.wait("the start", lambda: job.events("started") or job.state in OVER)
        started, said = job.events("started"), [e["why"] for e in job.events("ended")]
        lab.ask("scancel", job.number)
    finally:
        lab.on_node("n2", "umount", packed)
    if not started or "n2" in started[0]["nodes"]:
        raise FailedError(f"other_data: {job.state}: {started}, {said}")
    return {"ending": "other_data", "why": said, "nodes": started[0]["nodes"]}


THREE_NODES = ("bad_node", "spare_node", "one_less", "other_data")
ENDINGS: dict[str, Callable[[Lab, Any], dict[str, Any]]] = {
    "port_taken": port_taken,
    "scratch_full": scratch_full,
    "bad_data": bad_data,
    "fewer_nodes": fewer_nodes,
    "bad_node": bad_node,
    "spare_node": spare_node,
    "one_less": one_less,
    "other_data": other_data,
}
ALONE = ("spare_node", "one_less", "other_data", "bad_data")
"""Those that nothing is compared with: no undisturbed run is needed."""


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    choices = [*FAULTS, *ENDINGS]
    every = [name for name in choices if name not in THREE_NODES]
    parser.add_argument("--only", nargs="+", choices=choices, metavar="X", help=f"of {', '.join(choices)}")
    parser.add_argument(
        "--together", nargs="+", action="append", choices=list(FAULTS), metavar="X", help="all to one run"
    )
    parser.add_argument("--random", type=int, default=0, metavar="N", help="so many faults, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of --random (default: %(default)s)")
    parser.add_argument("--box", type=Path, help="a box that runs, instead of our own of two nodes")
    parser.add_argument("--keep", type=Path, help="an empty folder for the runs, kept")
    args = parser.parse_args()
    if args.random:
        drawn = random.Random(args.seed).choices(list(FAULTS), k=args.random)
        args.together = [*(args.together or []), *(drawn[i : i + 6] for i in range(0, len(drawn), 6))]
        print(f"drawn with seed {args.seed}: {' '.join(drawn)}", file=sys.stderr)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the box goes down with us
    folder = args.keep or Path(tempfile.mkdtemp(prefix="job-faults-"))
    folder.mkdir(exist_ok=True)
    rows: list[dict[str, Any]] = []

    begun = time.monotonic()

    def told(row: dict[str, Any]) -> None:
        print(json.dumps(row), f"(after {time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
        rows.append(row)

    def attempt(name: str, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception as error:
            if not isinstance(error, FailedError):
                traceback.print_exc()
            told({"fault": name, "failed": str(error)})

    with a_box(args.box) as box:
        # Each fault takes some steps, and the last one must still find a job that trains.
        lab = Lab(folder.resolve(), box, max(STEPS, 70 * max(map(len, args.together or [[]]))))
        lab.prepare()
        alone = bool(args.only) and not args.together and set(args.only) <= set(ALONE)
        wanted = None if alone else lab.submit("undisturbed").finished()

        def suffering(names: list[str]) -> None:
            job = lab.submit("-".join(names))
            for name in names:
                told(suffer(job, name))
            check_same(job, wanted)

        for names in args.together or []:
            attempt(" ".join(names), lambda names=names: suffering(names))
        for name in args.only or ([] if args.together else every):
            if name in FAULTS:
                attempt(name, lambda name=name: suffering([name]))
            else:
                attempt(name, lambda name=name: told(ENDINGS[name](lab, wanted)))
    if not args.keep:
        shutil.rmtree(folder)
    print(json.dumps({"steps": lab.steps, "hang_seconds": HANG, "rows": rows}, indent=1))
    sys.exit(any("failed" in row for row in rows))


if __name__ == "__main__":
    main()
