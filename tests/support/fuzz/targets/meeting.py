"""What the supervisors of a job write to each other, the heartbeat, and job.json."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from diffbase import ledger
from diffbase.cli import InputError
from launch.ask.profile import Cluster
from launch.ask.spec import JobSpec
from launch.job.folder import Place
from launch.supervise.environment import Layout
from launch.supervise.meeting import Door, Ended, Exit, Meeting, Plan
from launch.supervise.preflight import judge
from launch.supervise.wire.codec import LARGEST, Codec, StrangerError, encoded
from launch.supervise.wire.hub import Hub
from launch.supervise.wire.line import Line
from tests.support.fuzz.target import Target

PLAN = asdict(Plan(1, "n1", 29500, why="x", avoid=["n2"]))
DOOR = asdict(Door("n1", 29000, "ab" * 32))
MESSAGES = [
    encoded("hello", number=1, node="n1", pid=7, problems=["GPU 3"]),
    encoded("exits", number=0, exits=[asdict(Exit(2, 75, 12.5, "n1"))]),
    encoded("plan", number=0, plan=PLAN),
    encoded("ended", number=0, **asdict(Ended(1, failed=True))),
    encoded("overtaken"),
]
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
        names = ("plan-0", "leader", "speed-0")
        for path in (*(meeting.folder / f"{name}.json" for name in names), place.folder / "job.json"):
            path.write_bytes(data)
            path.chmod(0o600)
        (place.folder.parent / "current.json").write_bytes(data)
        (place.run / "heartbeat.json").write_bytes(data)
        beat = ledger.heartbeat(place.run)
        line, _ = judge(meeting, {}, where, spec)
        found = [
            meeting.kept_plan(0), meeting.door(), meeting.claimed_by(), beat,
            meeting.superseded() or None, line is None or "result" not in line or None,
            heard(data, place.live),
        ]  # fmt: skip
        try:
            found.append(place.spec())
        except InputError as error:
            if not any(found):
                raise InputError(f"nobody takes it; {error}") from None
        return found

    trees = (PLAN, CURRENT, BEAT, SPEED, SPEC, DOOR)
    seeds = [json.dumps(tree).encode() for tree in trees] + MESSAGES
    return Target(
        seeds, feed, [b'"avoid"', b'"code"', b'"rank"', b'"step"', b'"time"', b'"kind"', b'"number"']
    )


def heard(data: bytes, live: Path) -> bool:
    """Whether a leader or a node understands the message ``data``; and a stranger who says it is refused."""
    for codec in (Codec(b"s" * 32, leading=True), Codec(b"s" * 32, leading=False)):
        try:
            assert codec.receive(data) == [] and not codec.ready
        except StrangerError:
            assert not codec.ready
    leader, node = Codec(b"s" * 32, leading=True), Codec(b"s" * 32, leading=False)
    for one, other in ((leader, node), (node, leader), (leader, node)):
        other.receive(bytes(one.outgoing))
        one.outgoing.clear()
    node.send(data[:LARGEST])
    try:
        [message] = leader.receive(bytes(node.outgoing))
    except StrangerError:
        return False
    hub, line = Hub(live, "7.0", 3, 2, 1.0), Line(live, "7.0", 1.0, 1.0)
    hub.publish(0, Plan(0, "n1", 29500))
    understood = False
    for number in (None, 1):
        other_end: Any = SimpleNamespace(node=number, send=lambda message: None)
        for take in (lambda tree, end=other_end: hub._take(end, tree), line._take):
            try:
                take(dict(message))
                understood = True
            except StrangerError:
                continue
    hub.close()
    line.close()
    return understood
