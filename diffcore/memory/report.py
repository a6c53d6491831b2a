"""The memory report: anatomy.json (its schema is in docs/memory.md), memory.txt, report.html, TensorBoard.

A report has planned ranks, measured ranks or both, and every reader of it takes what there is.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from diffbase.files import write_atomic, write_json
from diffbase.tables import Console
from diffcore.config.tree import Config
from diffcore.memory.advise import Planner, words
from diffcore.memory.anatomy import SCHEMA, load
from diffcore.memory.calibration import calibration
from diffcore.memory.page import fullest, page
from diffcore.memory.planning.plan import Plan, as_json
from diffcore.memory.tables import show

__all__ = ["SCHEMA", "about", "load", "measured", "planned", "save", "scalars"]

MIB = 2**20


def about(config: Config, world: int, parameters: int) -> dict[str, Any]:
    """The run's settings that memory depends on."""
    micro, accumulation = config.batch.split(world)
    return {
        "model": config.model.kind,
        "parameters": parameters,
        "world": world,
        "zero": config.engine.zero,
        "precision": config.engine.precision,
        "checkpointing": config.engine.checkpointing,
        "offload": config.engine.offload,
        "micro_batch": micro,
        "accumulation": accumulation,
    }


def planned(config: Config, plans: Sequence[Plan], advice: Sequence[str] = ()) -> dict[str, Any]:
    """anatomy.json of plans alone."""
    return {
        "schema": SCHEMA,
        "unit": "bytes",
        "run": about(config, plans[0].world, plans[0].parameters),
        "planned": [as_json(p) for p in plans],
        "measured": [],
        "advice": list(advice),
    }


def measured(config: Config, ranks: Sequence[dict[str, Any]], advise: bool = True) -> dict[str, Any]:
    """anatomy.json of what every rank measured, with the plan of the same settings beside it."""
    device = "cpu" if ranks[0]["device"] == "cpu" else "cuda"
    tree = {
        "schema": SCHEMA,
        "unit": "bytes",
        "run": about(config, len(ranks), ranks[0]["parameters"]),
        "planned": [],
        "measured": list(ranks),
        "advice": [],
    }
    try:
        outside = calibration(ranks[0]["device"], torch.version.cuda)
        planner = Planner(config, device=device, outside=outside)
        plans = [planner.plan(config, len(ranks), rank["rank"]) for rank in ranks[:16]]
        plans[0] = planner.with_stages(plans[0], config)
        tree["planned"] = [as_json(plan) for plan in plans]
        if advise:
            tree["advice"] = words(planner, config, len(ranks))
    except Exception as error:  # the measurement is worth writing without it
        tree["advice"] = [f"No plan beside it: {type(error).__name__}: {error}"]
    return tree


def save(folder: Path, anatomy: dict[str, Any]) -> Path:
    """Write anatomy.json, memory.txt and report.html into ``folder``; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "anatomy.json", anatomy)
    text = io.StringIO()
    show(anatomy, Console(file=text, width=110))
    write_atomic(folder / "memory.txt", text.getvalue().encode())
    write_atomic(folder / "report.html", page(anatomy).encode())
    return folder / "report.html"


def scalars(anatomy: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """(tag, MiB) for TensorBoard: every moment's categories of the rank that holds most."""
    for which in ("planned", "measured"):
        if not anatomy[which]:
            continue
        rank = fullest(anatomy[which])
        for moment in rank["moments"]:
            for category, size in moment["bytes"].items():
                yield f"memory_{which}/{moment['name']}/{category}", size / MIB
            yield f"memory_{which}/{moment['name']}/allocated", moment["allocated"] / MIB
