"""anatomy.json, as ``summary`` and ``compare`` read it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from diffbase.cli import finite
from diffcore.memory import anatomy, tables
from diffcore.memory.comparing import compared
from diffcore.memory.exports import memory_viz, perfetto
from diffcore.memory.page.comparison import comparison
from diffcore.memory.page.page import page
from diffcore.runs import metrics
from diffcore.runs.figures import figures, numbers
from tests.support.fuzz.target import Target
from tests.support.fuzz.targets.metrics import LINES

SIZES = {"parameters": 400, "activations": 900}
MOMENT = {"name": "after forward", "bytes": SIZES, "host": 0, "allocated": 1300, "reserved": 2048}
RANK: dict[str, Any] = {
    "rank": 0, "device": "cpu", "parameters": 100, "micro_batch": 4,
    "moments": [MOMENT, MOMENT | {"name": "after step"}], "layers": [{"name": "down", "bytes": 900}],
    "timeline": [{"phase": "forward", "bytes": SIZES}],
    "lifetimes": {"categories": ["activations", "parameters"], "layers": ["", "down"],
                  "phases": [{"name": "forward", "end": 2}],
                  "tensors": [[1, 0, 400, 0, -1], [0, 1, 900, 1, 2]]},
    "capacity": {"bytes": 2**34, "source": "the machine"},
    "closure": [{"name": "parameters", "bytes": 400, "source": "storages"}], "notes": ["a note"],
}  # fmt: skip
TREE: dict[str, Any] = {
    "schema": anatomy.SCHEMA, "unit": "bytes",
    "run": {"model": "avatar", "parameters": 100, "world": 1, "zero": 1, "precision": "fp32",
            "checkpointing": "none", "offload": "none", "micro_batch": 4, "accumulation": 1,
            "name": "run", "date": "2026-11-28T02:00:00+00:00"},
    "planned": [RANK], "measured": [RANK | {"total": {"bytes": 5000, "source": "RSS"}}], "advice": ["less"],
    "savings": [{"setting": "engine.zero 2", "saves": 9, "share": 0.5, "slower": "about 10 %"}],
}  # fmt: skip
WORDS = [b'"allocated"', b'"moments": []', b'"parameters": 0', b'"measured": []', b'"bytes"']


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "whole.json").write_text(json.dumps(TREE))
        (folder / "anatomy.json").write_bytes(data)
        (folder / metrics.FILE).write_text(json.dumps(LINES[0]) + "\n")
        found, whole = anatomy.load(folder), anatomy.load(folder / "whole.json")
        tables.show(found)
        page(found)
        perfetto.trace(found)
        if any(rank.get("lifetimes") for side in ("planned", "measured") for rank in found[side]):
            memory_viz.pickled(found)
        if compared(found, whole)["moments"]:
            tables.print_comparison(found, whole, "a", "b")
            comparison(found, whole, "a", "b")
        told = figures(folder)
        numbers(told)
        json.dumps(finite(told), allow_nan=False)
        return found

    return Target([json.dumps(TREE).encode(), json.dumps(TREE | {"measured": []}).encode()], feed, WORDS)
