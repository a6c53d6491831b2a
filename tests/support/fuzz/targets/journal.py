"""The journal of a pack that was stopped, and packing on from it."""

from __future__ import annotations

import json
from pathlib import Path

from diffbase.cli import InputError
from shards.packing.journal import JOURNAL, Journal
from shards.packing.plan import Settings, plan_shards
from shards.sources.base import Sample
from tests.support.fuzz.examples import packed
from tests.support.fuzz.target import Target

ABOUT = {
    "preprocessing": {"size": 4, "crop": None},
    "source": {"kind": "x", "name": "y"},
    "shard_size": 8,
    "val": 0.0,
}


def target() -> Target:
    (plan,) = plan_shards([Sample("a", "x", b"1", 1, {})], Settings(val=0))
    done = {"name": plan.name, "sha256": "0" * 64, "samples": plan.digest}

    def feed(data: bytes, folder: Path) -> object:
        (folder / JOURNAL).write_bytes(data)
        (folder / plan.name).write_bytes(packed()["train-000000.tar"])
        journal = Journal(folder, ABOUT)
        try:
            if not journal.done:
                raise InputError("nothing is done")
            return journal.find(plan, ())
        finally:
            journal.close(keep=True)

    text = "".join(json.dumps(line) + "\n" for line in (ABOUT, done))
    return Target([text.encode()], feed, [b"\n{}", b"\n[]", b'{"name": 3}', b"\r", b'"sha256": null'])
