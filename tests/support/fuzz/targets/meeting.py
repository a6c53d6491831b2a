"""What the supervisors of a job write to each other, the heartbeat, and job.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from diffbase import ledger
from diffbase.cli import InputError
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job.folder import Place
from launch.supervise.environment import Layout
from launch.supervise.meeting import Exit, Meeting, Plan
from launch.supervise.preflight import judge
from tests.support.fuzz.target import Target

PLAN = asdict(Plan(1, "n1", 29500, why="x", avoid=["n2"]))
EXIT = asdict(Exit(0, 75, 12.5, "n1"))
HELLO = {"node": "n1", "pid": 7, "problems": ["GPU 3"]}
CURRENT = {"job": "5", "folder": "/x"}
BEAT = {"time": 5.0, "step": 3, "steps": 10, "attempt": 0, "section": "save"}
SPEED = {"backend": "gloo", "gbps": 3.5, "pairs": {"n1 n2": 3.5}}
SPEC = {
    "cluster": Cluster(name="box").model_dump(), "job": "j", "nodes": 2, "nodes_min": 1, "tasks_per_node": 1,
    "gpus_per_node": 0, "cpus_per_task": 1, "minutes": 60,
}  # fmt: skip


def target() -> Target:
    spec, where = JobSpec.model_validate(SPEC), Layout("7", "7.0", 0, 0, 2, 0, 1, 0, ("n1", "n2"))

    def feed(data: bytes, folder: Path) -> object:
        place = Place(folder / "run" / "job" / "001")
        meeting = Meeting(place.live, "7.0")
        meeting.open()
        names = ("plan-0", "exit-0-0", "exit-0-x", "hello-0", "hello-", "hello-x", "speed-0")
        for path in (*(meeting.folder / f"{name}.json" for name in names), place.folder / "job.json"):
            path.write_bytes(data)
        (place.folder.parent / "current.json").write_bytes(data)
        (place.run / "heartbeat.json").write_bytes(data)
        beat = ledger.heartbeat(place.run)
        line, _ = judge(meeting, {}, where, spec)
        found = [
            meeting.plan(0), meeting.exits(0, {}), meeting.hellos(), meeting.claimed_by(), beat,
            meeting.superseded() or None, line is None or "result" not in line or None,
        ]  # fmt: skip
        try:
            found.append(place.spec())
        except InputError as error:
            if not any(found):
                raise InputError(f"nobody takes it; {error}") from None
        return found

    seeds = [json.dumps(tree).encode() for tree in (PLAN, EXIT, HELLO, CURRENT, BEAT, SPEED, SPEC)]
    return Target(seeds, feed, [b'"avoid"', b'"code"', b'"rank"', b'"step"', b'"time"'])
