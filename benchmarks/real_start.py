"""A real job of many ranks on this machine, beside another commit's: trains, loses a rank, and goes on.

    python benchmarks/real_start.py --before REVISION [--ranks 64] [--seconds 20] [--patience 900]
    python benchmarks/real_start.py --before REVISION --preflight [--ranks 2] [--rounds 5]

A tiny network under ``--cluster local``: seconds from the submission to the first step, calls that name a
file (strace %file) a second and rank while it trains, of supervisors and of the ranks themselves, and whether
it goes on when a rank is killed, from a step that was saved. A rank takes some 300 MB.

``--preflight``: with the timed all-reduce, and only the start: seconds to the first step from the submission
and from the plan that follows the all-reduce, and processor seconds of the job until then, in ``--rounds`` in
which the sides take turns; and the calls that name a file of a whole job of two steps, of all its processes,
a rank. Prints JSON; ratios are before / now, of seconds the least.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(HERE))

from benchmarks.control_scale import calls, checkout, children, file_calls  # noqa: E402
from tests.support import small_set  # noqa: E402

CONFIG = """
run: RUN
data: {path: DATA}
model: {kind: avatar, channels: [8, 8], blocks: 1, attention_levels: [1], heads: 2, tau_tokens: 1}
diffusion: {timesteps: 100}
batch: {size: RANKS}
engine: {zero: 1, threads: 1}
train: {steps: 1000000, log_every: 1, checkpoint_every: 10}
sampling: {every: 1000000, count: 1, steps: 1}
validation: {every: 1000000}
guards: {start_seconds: 3000}
memory: {trace: false}
"""


class Job:
    """One side's job, from its submission on."""

    def __init__(
        self, tree: Path, folder: Path, packed: Path, ranks: int, patience: float, *more: str,
        cluster: Sequence[str] = ("local", "--no-preflight"), tracer: Sequence[str] = (),
    ) -> None:  # fmt: skip
        self.run, self.patience = folder / "run", patience
        config = folder / "config.yaml"
        text = CONFIG.replace("RUN", str(self.run)).replace("DATA", str(packed)).replace("RANKS", str(ranks))
        config.write_text(text)
        command = [*tracer, sys.executable, str(tree / "launch" / "submit.py"), "--config", str(config)]
        size = ["--cluster", *cluster, "--tasks-per-node", str(ranks), *more]
        env = os.environ | {
            "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1", "XDG_STATE_HOME": str(folder / "state"),
        }  # fmt: skip
        subprocess.run(
            [*command, *size], env=env, cwd=folder, check=True, stdout=sys.stderr, timeout=patience
        )
        self.controller = int(next(self.events("submitted"))["job"])

    def events(self, kind: str) -> Iterator[dict[str, Any]]:
        path = self.run / "events.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return (event for line in lines if (event := json.loads(line))["event"] == kind)

    def beat(self) -> dict[str, Any]:
        try:
            tree: dict[str, Any] = json.loads((self.run / "heartbeat.json").read_text())
        except (OSError, ValueError):
            return {"step": 0, "attempt": 0}
        return tree

    def trains(self) -> bool:
        return int(self.beat()["step"]) >= 1

    def wait(self, condition: Callable[[], object]) -> float:
        began = time.monotonic()
        while not condition():
            if time.monotonic() - began > self.patience or not Path(f"/proc/{self.controller}").exists():
                logs = sorted(self.run.glob("job/001/*_0_log.out"))
                raise SystemExit(f"waited in vain: {logs[0].read_text()[-2000:] if logs else 'no log'}")
            time.sleep(0.1)
        return time.monotonic() - began

    def processes(self) -> list[int]:
        """Supervisors and ranks, without the controller."""
        found, new = [], children(self.controller)
        while new:
            found += new
            new = [child for pid in new for child in children(pid)]
        return found

    def used(self) -> float:
        """Processor seconds of all processes, with those that they have waited for."""
        ticks = 0
        for pid in [*self.processes(), self.controller]:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                ticks += sum(map(int, fields[11:15]))
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        for pid in [*self.processes(), self.controller]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def measured(tree: Path, folder: Path, packed: Path, given: argparse.Namespace) -> dict[str, Any]:
    folder.mkdir()
    job = Job(tree, folder, packed, given.ranks, given.patience)
    try:
        found: dict[str, Any] = {"first_step_s": job.wait(lambda: job.beat()["step"] >= 2)}
        found["processes"] = len(job.processes())
        supervisors = children(job.controller)
        ranks = [pid for supervisor in supervisors for pid in children(supervisor)]
        for name, pids in (("supervisors", supervisors), ("ranks", ranks)):
            rate = file_calls(pids, folder / name, given.seconds)
            found[f"calls_of_{name}"] = round(rate / given.ranks, 3)
        job.wait(lambda: list((job.run / "checkpoints").glob("step-*/COMPLETE")))
        os.kill(job.processes()[-1], signal.SIGKILL)
        found["again_s"] = job.wait(lambda: job.beat()["attempt"] == 1 and job.beat()["step"] > 10)
        loaded = [event["step"] for event in job.events("loaded") if event.get("attempt") == 1]
        found["went_on_from_step"] = loaded[0] if loaded else None
    finally:
        job.close()
    return found


def started(trees: dict[str, Path], folder: Path, packed: Path, given: argparse.Namespace) -> dict[str, Any]:
    """Both sides' starts with the timed all-reduce."""
    profile = folder / "timed.yaml"
    profile.write_text("{name: local, gpus: {form: none}, preflight: {run_gb: 0, scratch_gb: 0}}\n")
    found: dict[str, Any] = {
        side: {"first_step_s": [], "from_plan_s": [], "processor_s": []} for side in trees
    }
    for number in range(given.rounds):
        for side, tree in trees.items():
            where = folder / f"{side}-{number}"
            where.mkdir()
            job = Job(tree, where, packed, given.ranks, given.patience, cluster=[str(profile)])
            try:
                found[side]["first_step_s"].append(round(job.wait(job.trains), 2))
                found[side]["processor_s"].append(round(job.used(), 2))
                plan, step = next(job.events("started")), next(job.events("first_step"))
                found[side]["from_plan_s"].append(round(step["time"] - plan["time"], 2))
            finally:
                job.close()
    for side, tree in trees.items():
        where = folder / f"{side}-traced"
        where.mkdir()
        tracer = ["strace", "-c", "-f", "-e", "trace=%file", "-o", str(where / "calls")]
        steps = ["--follow", "--train.steps", "2"]
        Job(tree, where, packed, given.ranks, given.patience, *steps, cluster=[str(profile)], tracer=tracer)
        found[side]["calls_a_rank"] = round(calls(where / "calls") / given.ranks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", required=True, help="a revision of this repository")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--patience", type=float, default=900)
    parser.add_argument("--preflight", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, checkout(given.before) as before:
        packed = small_set.packed(Path(name), count=96 + 2 * given.ranks)
        trees = {"before": before, "now": HERE}
        if given.preflight:
            sides = started(trees, Path(name), packed, given)
            least = {side: {key: np.min(value) for key, value in sides[side].items()} for side in trees}
            ratio = {key: round(least["before"][key] / least["now"][key], 2) for key in least["now"]}
            print(json.dumps({"ranks": given.ranks, **sides, "ratio": ratio}, indent=1))
            return
        sides = {side: measured(tree, Path(name) / side, packed, given) for side, tree in trees.items()}
    keys = ("first_step_s", "calls_of_supervisors", "again_s")
    ratio = {key: round(sides["before"][key] / max(sides["now"][key], 1e-3), 1) for key in keys}
    print(json.dumps({"ranks": given.ranks, **sides, "ratio": ratio}, indent=1))


if __name__ == "__main__":
    main()
