"""promise.json beside what a run delivered, as ``summary`` and ``launch.jobs status`` show it."""

from __future__ import annotations

import json
from pathlib import Path

from diffbase.cli import finite
from diffcore.memory import promise
from tests.support.fuzz.target import Target
from tests.support.fuzz.targets.anatomy import TREE

TOLD = {
    "schema": promise.SCHEMA, "card": "A100 40GB", "nodes": 2, "world": 8, "zero": 1, "checkpointing": "none",
    "micro_batch": 4, "accumulation": 1, "planned_bytes": 3 << 30, "peak_bytes": 1 << 30,
    "images_per_second": 100.0, "timed": "modelled", "submitted": 1.7e9, "start": 1.7e9,
}  # fmt: skip
WORDS = [
    b'"start": 1e12',
    b'"submitted": 1e400',
    b'"peak_bytes": 0',
    b'"planned_bytes": -1',
    b'"card": "\\u001b[2J"',
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / promise.FILE).write_bytes(data)
        (folder / "anatomy.json").write_text(json.dumps(TREE))
        (folder / "metrics.jsonl").write_text('{"step": 1, "train/images_per_second": 90.5}\n')
        (folder / "events.jsonl").write_text('{"time": 1.7e9, "event": "start", "attempt": 0, "world": 8}\n')
        beside = promise.beside(folder)
        assert beside is not None
        promise.rows(beside)
        json.dumps(finite(beside), allow_nan=False)
        return beside

    return Target([json.dumps(TOLD).encode(), json.dumps(TOLD | {"start": None}).encode()], feed, WORDS)
