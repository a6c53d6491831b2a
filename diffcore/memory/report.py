"""The memory report: anatomy.json (its schema is in docs/memory.md), memory.txt, report.html, TensorBoard.

A report has planned ranks, measured ranks or both, and every reader of it takes what there is.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from diffbase.files import write_atomic, write_json
from diffbase.tables import Console
from diffcore.config.tree import Config
from diffcore.memory.advise import Planner, words
from diffcore.memory.anatomy import SCHEMA, load
from diffcore.memory.calibration import calibration
from diffcore.memory.page.page import page
from diffcore.memory.planning.lifetimes import lifetimes
from diffcore.memory.planning.plan import Plan, as_json
from diffcore.memory.reading import both, fullest, peak, seen
from diffcore.memory.tables import show

__all__ = ["SCHEMA", "about", "entries", "load", "measured", "planned", "save", "savings", "scalars"]

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
        "name": config.run.name,
    }


def planned(
    config: Config,
    plans: Sequence[Plan],
    advice: Sequence[str] = (),
    room: int | None = None,
    saved: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """anatomy.json of plans alone. ``room``: bytes of the card that they are for; ``saved``: ``savings``."""
    return tree_of(about(config, plans[0].world, plans[0].parameters), plans, advice, room, saved)


def tree_of(
    run: dict[str, Any],
    plans: Sequence[Plan],
    advice: Sequence[str] = (),
    room: int | None = None,
    saved: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:
    """As ``planned``, of any network: ``run`` has the settings."""
    capacity = {"capacity": {"bytes": room, "source": "the card given"}} if room else {}
    return {
        "schema": SCHEMA,
        "unit": "bytes",
        "run": run,
        "planned": [rank | capacity for rank in entries(plans)],
        "measured": [],
        "advice": _ordered(advice, saved),
        "savings": list(saved),
    }


def entries(plans: Sequence[Plan]) -> list[dict[str, Any]]:
    """Entries of anatomy.json, the first with each tensor's life."""
    ranks = [as_json(plan) for plan in plans]
    if plans and (stream := plans[0].stream) and (told := lifetimes(stream)):
        ranks[0]["lifetimes"] = told
    return ranks


OF_GPUS = {"precision", "offload"}
"""Settings that help nothing on a CPU: bf16 is slow there, and what is offloaded stays in the same memory."""


def savings(planner: Planner, config: Config, world: int) -> list[dict[str, Any]]:
    """What each setting would save alone, the most useful first: the most bytes for the least slow-down."""
    have, found = planner.plan(config, world).smi, []
    for change, changed in planner.changes(world):
        if planner.device == "cpu" and OF_GPUS & change.values.keys():
            continue
        if (saved := have - planner.plan(changed, world).smi) > 0:
            share = round(saved / have, 4)
            row = {"setting": change.setting, "saves": saved, "share": share, "slower": change.slower}
            found.append(row)
    return sorted(found, key=lambda row: -row["saves"] / (5 + _percent(row["slower"])))


def _percent(slower: str) -> float:
    """How much slower, in per cent, as far as the words say; "none" is 0, and what has no figure 100."""
    figure = re.search(r"(\d+) %", slower)
    return float(figure[1]) if figure else 0.0 if slower.startswith("none") else 100.0


def _ordered(advice: Sequence[str], saved: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of advice in the order of ``savings``, then others; none of settings that are left out."""
    places = {row["setting"]: number for number, row in enumerate(saved)}

    def place(line: str) -> int:
        return next((at for name, at in places.items() if line.startswith(f"{name} saves")), len(places))

    kept = [line for line in advice if place(line) < len(places) or " saves " not in line]
    return sorted(kept, key=place)


def measured(config: Config, ranks: Sequence[dict[str, Any]], advise: bool = True) -> dict[str, Any]:
    """anatomy.json of what every rank measured, with the plan of the same settings beside it."""
    device = "cpu" if ranks[0]["device"] == "cpu" else "cuda"
    tree: dict[str, Any] = {
        "schema": SCHEMA,
        "unit": "bytes",
        "run": about(config, len(ranks), ranks[0]["parameters"])
        | {"date": datetime.now(UTC).isoformat(timespec="seconds")},
        "planned": [],
        "measured": list(ranks),
        "advice": [],
    }
    try:
        outside = calibration(ranks[0]["device"], torch.version.cuda)
        planner = Planner(config, device=device, outside=outside)
        plans = [planner.plan(config, len(ranks), rank["rank"]) for rank in ranks[:16]]
        plans[0] = planner.with_stages(plans[0], config)
        tree["planned"] = entries(plans)
        if advise:
            saved = savings(planner, config, len(ranks))
            tree["savings"], tree["advice"] = saved, _ordered(words(planner, config, len(ranks)), saved)
    except Exception as error:  # the measurement is worth writing without it
        tree["advice"] = [f"No plan beside it: {type(error).__name__}: {error}"]
    return tree


def save(folder: Path, anatomy: dict[str, Any]) -> Path:
    """Write anatomy.json, memory.txt and report.html into ``folder``; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "anatomy.json", anatomy, indent=None)
    text = io.StringIO()
    show(anatomy, Console(file=text, width=110))
    write_atomic(folder / "memory.txt", text.getvalue().encode())
    write_atomic(folder / "report.html", page(anatomy).encode())
    return folder / "report.html"


def scalars(anatomy: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """A handful of (tag, MiB) for TensorBoard, of the rank that holds most; the plan's error is a share."""
    for which in ("planned", "measured"):
        if anatomy[which]:
            yield f"memory/peak_{which}_mib", peak(fullest(anatomy[which]))["allocated"] / MIB
    if anatomy["measured"]:
        rank = fullest(anatomy["measured"])
        yield "memory/after_step_mib", rank["moments"][-1]["allocated"] / MIB
        yield "memory/seen_by_the_system_mib", seen(rank) / MIB
        if rank["device"] != "cpu":
            yield "memory/reserved_mib", max(moment["reserved"] for moment in rank["moments"]) / MIB
    if (pair := both(anatomy)) and (measured := peak(pair[1])["allocated"]):
        yield "memory/error_of_the_peak", peak(pair[0])["allocated"] / measured - 1
