"""The user's own list of jobs and of nodes left out, as ``jobs list`` and ``submit`` read them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from unittest.mock import patch

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.formats import jsonl
from launch.follow import show
from launch.job import registry
from launch.scheduler import query
from tests.support.fuzz.target import Target

JOB = {"time": 1, "run": "run", "job": "5", "cluster": "box"}
NODE = {"node": "n2", "until": 10**11, "why": "GPU 3"}
WORDS = [b'{"node": "n1,n2", "until": 1e11}\n', b'"until"', b'"node"', b'"run"', b"/proc/self/mem", b"other"]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        with (
            patch.dict(os.environ, {"XDG_STATE_HOME": str(folder)}),
            patch.object(query, "ask", return_value=query.Known()),
        ):
            home = registry.path_of("jobs.jsonl").parent
            home.mkdir()
            for name in ("run", "other"):
                (folder / name).mkdir()
                ledger.record(folder / name, "submitted", job="5", cluster="box", folder=str(folder))
            (home / "jobs.jsonl").write_bytes(data)
            registry.remember(folder / "other", "6", "box")
            _, rows, _ = show.see_list()
            json.dumps(rows, allow_nan=False)
            assert rows[-1]["run"] == str(folder / "other"), "one run hides another"
            path = home / "excluded-box.jsonl"
            path.write_bytes(data)
            found = registry.excluded("box")
            assert all("," not in node and not node.startswith("-") for node in found)
            assert registry.excluded("box") == found
            registry.exclude("box", {"n9": "x"}, 1)
            assert registry.excluded("box") == found | {"n9": "x"}
            if not found and len(rows) == 1:
                raise InputError("nothing of it can be read")
            return found, rows

    return Target(
        [jsonl.text([JOB]).encode(), jsonl.text([NODE, NODE | {"node": "n3"}]).encode()], feed, WORDS
    )
