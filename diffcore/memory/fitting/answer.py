"""What ``fit`` answers: its search, and the answer as a tree."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.machine.cards import Card
from diffcore.config.tree import Config
from diffcore.memory.advise import MOST, Planner
from diffcore.memory.calibration import Calibration
from diffcore.memory.fitting import find
from diffcore.memory.fitting.choose import Candidate, Chooser
from diffcore.memory.fitting.command import command
from diffcore.memory.fitting.measured import Measured
from diffcore.memory.fitting.space import CHOICES, Space
from diffcore.memory.fitting.timing import MFU, NETWORK, Clock, Layout
from diffcore.memory.fitting.work import work_of

TIGHT = 0.05
"""Share of a card: where a plan leaves less, a note says what is not in it."""


@dataclass(frozen=True)
class Asked:
    """What ``fit`` is asked; ``find``: card, gpus, batch, side or, as it is first of all, None."""

    config: Config
    name: str
    """The config as the command line has it."""
    card: Card
    layouts: Sequence[Layout]
    outside: Calibration
    held: Collection[str]
    """Fields of engine and batch that the command line gives, which stay as they are in ``config``."""
    overrides: Sequence[str] = ()
    """Dotted flags of the command line."""
    find: str | None = None
    run: Path | None = None
    """Whose speed is measured."""
    mfu: float | None = None
    most: int = 6


def answer(asked: Asked) -> dict[str, Any]:
    """The tree of docs/fit.md. InputError where nothing fits, by how much."""
    planner = Planner(asked.config, outside=asked.outside)
    chooser, measured = _chooser(asked, planner)
    layouts, found, notes = list(asked.layouts), dict[str, Any](), list[str]()
    if asked.find == "card":
        chooser = find.smallest_card(chooser, layouts[0])
        found = {"card": chooser.clock.card.name}
    elif asked.find == "gpus":
        layouts = [find.fewest_gpus(chooser, layouts[0].per_node, layouts[0].network)]
        found = {"gpus": layouts[0].world, "nodes": layouts[0].nodes}
    elif asked.find == "side":
        side, chooser = find.longest_side(chooser, layouts[0])
        found = {"side": side, "most_tried": side + chooser.space.config.model.divisor > find.LONGEST}
        notes.append(f"for images of {side} x {side} pixels: pack the shards with --size {side}")
    if asked.find == "batch":
        candidates = [find.largest_batch(chooser, layouts[0])]
        largest = candidates[0]
        found = {"batch": largest.images, "micro_batch": largest.micro, "most_tried": largest.micro == MOST}
    else:
        candidates = chooser.ranked(layouts, asked.most)
    if not candidates:
        raise InputError(_nothing(chooser, layouts))
    several = len(layouts) > 1 and asked.find is None
    best_of = [one for layout in layouts for one in chooser.ranked([layout], 1)] if several else []
    rows = [_row(asked, chooser, one, measured) for one in candidates]
    return {
        "schema": "diffcore.fit/1",
        "card": _card(chooser.clock.card),
        "find": asked.find,
        "found": found,
        "network": asdict(chooser.clock.work) | {"side": chooser.planner.data.size},
        "batch": asked.config.batch.size,
        "as_configured": _as_configured(asked, planner, layouts[0]) if asked.find in (None, "gpus") else None,
        "best": rows[0],
        "candidates": rows,
        "by_nodes": [_row(asked, chooser, one, measured) for one in best_of] if best_of else rows[:1],
        "times": chooser.clock.source,
        "outside": chooser.planner.outside.source,
        "notes": [*notes, *_notes(asked, chooser, layouts), *_tight(chooser, candidates[0])],
    }


def _chooser(asked: Asked, planner: Planner) -> tuple[Chooser, Measured | None]:
    held = {name: getattr(asked.config.engine, name) for name in CHOICES if name in asked.held}
    if "micro" in asked.held and asked.config.batch.micro is not None:
        held["micro"] = asked.config.batch.micro
    if asked.config.engine.deepspeed is not None:  # its JSON is of one stage
        held["zero"] = asked.config.engine.zero
    mfu = MFU if asked.mfu is None else asked.mfu
    how = "assumed" if asked.mfu is None else "as --mfu says"
    source = f"at {mfu:.0%} of the card's peak, {how}"
    clock = Clock(work_of(planner, asked.config), asked.card, mfu, source=source)
    measured = None if asked.run is None else Measured.of(asked.run)
    return Chooser(planner, Space(asked.config, held), measured.clock(clock) if measured else clock), measured


def _row(asked: Asked, chooser: Chooser, one: Candidate, measured: Measured | None) -> dict[str, Any]:
    size = one.images if asked.find == "batch" or "size" in asked.held else None
    card = chooser.clock.card
    same = measured and measured.is_of(card, one.setting, one.layout, one.micro, one.accumulation)
    return asdict(one.setting) | {
        "nodes": one.layout.nodes,
        "gpus_per_node": one.layout.per_node,
        "micro_batch": one.micro,
        "accumulation": one.accumulation,
        "batch": one.images,
        "planned_bytes": one.plan.smi,
        "peak_bytes": one.plan.peak.allocated,
        "bucket_elements": chooser.bucket(one) if asked.find != "batch" else None,
        "seconds": asdict(one.times) | {"step": one.times.step},
        "images_per_second": one.images_per_second,
        "timed": "measured" if same else "modelled",
        "command": command(asked.name, asked.overrides, one.setting, one.layout, one.micro, size),
    }


def _card(card: Card) -> dict[str, Any]:
    return {
        "name": card.name, "gb": card.gb, "usable_bytes": card.usable,
        "usable": "known" if card.known else "modelled", "rates_of": card.like or card.name,
    }  # fmt: skip


def _as_configured(asked: Asked, planner: Planner, layout: Layout) -> dict[str, Any] | None:
    """The plan of the config as it is; None where its batch does not divide among the ranks."""
    try:
        planned = planner.plan(asked.config, layout.world)
    except InputError:
        return None
    return {
        "planned_bytes": planned.smi,
        "micro_batch": planned.micro,
        "fits": planned.smi <= asked.card.usable,
    }


def _nothing(chooser: Chooser, layouts: Sequence[Layout]) -> str:
    card, size = chooser.clock.card, chooser.space.config.batch.size
    able = [layout for layout in layouts if chooser.space.micros(layout)]
    if not able:
        worlds = " or ".join(str(layout.world) for layout in layouts)
        micro = chooser.space.held.get("micro")
        of = f"micro batches of {micro} on " if micro else ""
        return f"batch.size {size} does not divide into {of}{worlds} GPUs"
    most = max(able, key=lambda layout: layout.world)
    least = chooser.least(most)
    return (
        f"nothing fits {most.world} x {card.name} with what is held: {least / 2**20:,.0f} MiB are "
        f"planned at least, {card.usable / 2**20:,.0f} are there; --find card, or gpus, says what would do"
    )


def _tight(chooser: Chooser, first: Candidate) -> list[str]:
    """What a plan that leaves little of the card does not have in it."""
    left = chooser.room - first.plan.smi
    if left > TIGHT * chooser.room:
        return []
    return [
        f"{left / 2**20:,.0f} MiB of the card are left: cuDNN's scratch, which is not planned, took up to "
        "5 % of a peak on an H200 (docs/gpu.md)"
    ]


def _notes(asked: Asked, chooser: Chooser, layouts: Sequence[Layout]) -> list[str]:
    card, found = chooser.clock.card, []
    if chooser.planner.data.assumed:
        found.append(chooser.planner.data.assumed)
    if chooser.space.held.get("precision") == "bf16" and not card.bf16:
        found.append(f"{card.name} has no bf16 units: it is far slower there than the rates that are taken")
    if card.like:
        found.append(f"rates of {card.like}: of the card only the memory is known")
    if max(layout.nodes for layout in layouts) > 1:
        network = layouts[0].network
        said = "assumed: --network says another" if network == NETWORK else "as --network says"
        found.append(f"a node sends {network:g} GB/s to others, {said}")
    if asked.config.engine.deepspeed is not None:
        found.append(f"engine.zero stays {asked.config.engine.zero}: engine.deepspeed is of that stage")
    if "g." in card.name and max(layout.world for layout in layouts) > 1:
        found.append("MIG slices have no peer-to-peer: ranks reach each other by way of the host")
    return found
