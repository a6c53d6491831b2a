"""A run's ``events.jsonl``, as all of its readers take it: status, goodput, the budget of restarts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import patch

from diffbase import ledger, tables
from diffbase.formats import jsonl
from launch.follow import goodput, show
from launch.follow.run import Run
from launch.job.entry import next_attempt
from launch.scheduler import query
from launch.supervise.decide import budget
from tests.support.fuzz.target import Target

LIFE: dict[str, Any] = {"job": "5", "restart": 0}
EVENTS: list[dict[str, Any]] = [
    {"time": 0.0, "event": "submitted", "attempt": 0, "job": "5", "cluster": "box", "folder": "/x"},
    {"time": 10.0, "event": "started", "attempt": 0, **LIFE, "nodes": ["n1"], "port": 29500},
    {"time": 14.0, "event": "start", "attempt": 0, "steps": 100, "world": 1, "pid": 7, "host": "n1"},
    {"time": 15.0, "event": "loaded", "attempt": 0, "step": 0, "checkpoint": None},
    {"time": 16.0, "event": "first_step", "attempt": 0, "step": 1},
    {"time": 20.0, "event": "saved", "attempt": 0, "step": 10, "seconds": 2.0, "waited": 0.1},
    {"time": 21.0, "event": "rollback", "attempt": 0, "step": 10, "lost": 3, "why": "the loss"},
    {"time": 36.0, "event": "ended", "attempt": 0, **LIFE, "code": 75, "step": 40, "kept": 10, "beat": 32.0,
     "progress": True, "why": "rank 1 on n1: killed"},
    {"time": 37.0, "event": "started", "attempt": 1, **LIFE},
    {"time": 40.0, "event": "start", "attempt": 1},
    {"time": 41.0, "event": "loaded", "attempt": 1, "step": 10},
    {"time": 60.0, "event": "done", "attempt": 1, "step": 100},
    {"time": 61.0, "event": "ended", "attempt": 1, **LIFE, "code": 0, "step": 100, "beat": None},
]  # fmt: skip
WORDS = [
    b'{"time": 12, "event": "ended", "attempt": 0, "code": -9}\n',
    b'{"time": 9e11, "event": "start", "attempt": 999999999}\n',
    b'{"time": 0, "event": "started", "attempt": 1}\n',
    b'"event": "submitted"',
    b'"takeover": true',
    b'"step": null',
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        run = folder / "run"
        run.mkdir()
        (run / "events.jsonl").write_bytes(data)
        ledger.beat(run, 40, 100, "train")
        events = list(ledger.events(run))
        for number in {e["attempt"] for e in events}:
            budget.progressed(events, budget.reached(run, number))
        budget.spent(events, 3)
        next_attempt(run)
        for attempt in goodput.account(events, ledger.heartbeat(run)):
            assert all(0 <= value < math.inf for value in attempt.seconds.values())
        known = Run.read(run)
        nothing = query.Known()
        with patch.object(query, "ask", return_value=nothing):  # Slurm, if there is one here, is not asked
            blocks, tree, _ = show.see_status([run])
            tables.show(blocks)
            json.dumps(tree, allow_nan=False)
            if any(e["event"] in ("started", "start") for e in events):
                json.dumps(show.show_goodput(known), allow_nan=False)
        ledger.record(run, "start")
        assert len(list(ledger.events(run))) == len(events) + 1
        return known

    text = jsonl.text(EVENTS).encode()
    return Target([text, text + b'{"time": 62, "ev', jsonl.text(EVENTS[:3]).encode()], feed, WORDS)
