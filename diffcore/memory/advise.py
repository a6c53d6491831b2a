"""What fits: the largest micro batch of a card, the changes that make a wanted one fit, and a table of both.

Changes come in the order of what they cost. Slow-downs are rules of thumb from the techniques' own papers,
not measurements of this network; savings are planned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.offload import OFFLOADS
from diffcore.config.tree import Config
from diffcore.memory.calibration import ASSUMED, GPUS, Calibration, capacity
from diffcore.memory.planning.plan import Data, Plan, between, plan, trace_quietly
from diffcore.memory.planning.recording import Event, Kind, Trace

MOST = 4096
"""Largest micro batch that is tried."""


@dataclass(frozen=True)
class Change:
    """One setting that takes less memory."""

    setting: str
    values: dict[str, Any]
    """Fields of ``engine``."""
    slower: str
    """What it costs, in words."""


CHANGES = (
    Change("engine.precision bf16", {"precision": "bf16"}, "none: faster on any GPU since Ampere"),
    Change("engine.zero 1", {"zero": 1}, "under 5 % (one all-gather per step)"),
    Change("engine.zero 2", {"zero": 2}, "under 5 % more"),
    Change("engine.checkpointing selective", {"checkpointing": "selective"}, "about 10 %"),
    Change("engine.zero 3", {"zero": 3}, "up to 50 % more traffic"),
    Change("engine.checkpointing full", {"checkpointing": "full"}, "about 33 %: one more forward"),
    Change("engine.offload optimizer", {"offload": "optimizer"}, "the step runs on the host's cores"),
    Change("engine.offload parameters", {"offload": "parameters"}, "the weights cross the bus in every pass"),
)


MORE = {"checkpointing": ("none", "selective", "full"), "offload": tuple(OFFLOADS)}
"""Settings whose later values take less memory than the earlier ones."""


class Planner:
    """Plans of one network under many settings; a micro batch's trace is made once and scaled."""

    def __init__(
        self,
        config: Config,
        data: Data | None = None,
        device: str = "cuda",
        outside: Calibration = ASSUMED,
    ) -> None:
        self.config, self.data, self.device = config, data or Data.of(config), device
        self.outside = outside
        self._traces: dict[tuple[str, str, str], dict[int, Trace]] = {}

    def trace(self, config: Config, micro: int) -> Trace:
        """The first two micro batches of a kind of network are traced, others follow from them: sizes are
        affine in the batch."""
        precision = "fp32" if config.engine.precision == "fp32" else "half"
        kind = (
            "autocast"
            if config.engine.arithmetic.autocast
            else "zero 3"
            if config.engine.zero == 3
            else "zero 0 to 2"
        )
        traces = self._traces.setdefault((precision, config.engine.checkpointing, kind), {})
        if micro not in traces:
            two = sorted([count for count in traces if count > 1][:2])  # one sample takes other steps
            scaled = between(traces[two[0]], traces[two[1]], micro) if len(two) == 2 else None
            traces[micro] = scaled or settled(trace_quietly(config, self.data, micro, self.device))
        return traces[micro]

    def plan(self, config: Config, world: int, rank: int = 0) -> Plan:
        """The plan of ``rank`` of ``world``, as ``plan.plan`` makes it. InputError for another rank."""
        if not 0 <= rank < world:
            raise InputError(f"rank {rank} is not one of {world} ranks")
        traced = self.trace(config, config.batch.split(world)[0])
        return plan(config, world, rank, self.device, self.data, traced, self.outside)

    def with_stages(self, planned: Plan, config: Config) -> Plan:
        """``planned`` with a note for each of the run's stages on smaller images: its peak."""
        notes = []
        for span in config.train.spans[:-1]:
            traced = trace_quietly(config, self.data, planned.micro, self.device, span)
            smaller = plan(config, planned.world, planned.rank, self.device, self.data, traced, self.outside)
            side, peak = span.side(self.data.size), f"{smaller.peak.allocated / 2**20:,.1f}"
            notes.append(f"to step {span.end}, with images of {side} x {side}, the peak is {peak} MiB")
        return replace(planned, notes=(*planned.notes, *notes))

    def with_micro(self, config: Config, micro: int, world: int) -> Config:
        """``config`` with this micro batch on ``world`` ranks, without accumulation."""
        return configure.replace(config, "batch", {"micro": micro, "size": micro * world})

    def largest(self, config: Config, world: int, room: int) -> int:
        """Largest micro batch whose plan is within ``room`` bytes; 0 if not even one sample is."""

        def fits(micro: int) -> bool:
            return self.plan(self.with_micro(config, micro, world), world).smi <= room

        if not fits(1):
            return 0
        low = 1
        while low < MOST and fits(2 * low):
            low *= 2
        high = min(2 * low, MOST + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return low

    def largest_of_batch(self, config: Config, world: int, room: int) -> int:
        """Largest micro batch under the present one that fits and that divides what a rank has of
        ``batch.size``; 0 if there is none."""
        micro, accumulation = config.batch.split(world)
        most = min(self.largest(config, world, room), micro - 1)
        return next((n for n in range(most, 0, -1) if micro * accumulation % n == 0), 0)

    def changes(self, world: int) -> Iterator[tuple[Change, Config]]:
        """Each change that these settings do not have yet, alone, where it is allowed."""
        for change in CHANGES:
            if changed := changed_by(self.config, change, world):
                yield change, changed


def settled(traced: Trace) -> Trace:
    """The trace with what is freed at once in the order in which it was made.

    autocast drops its casts of the weights in another order each time, so that no two traces were alike.
    """
    events: list[Event] = []
    for frees, group in groupby(traced.events, key=lambda event: event.kind == Kind.FREE):
        alike = list(group)
        events += sorted(alike, key=lambda event: event.what) if frees else alike
    return replace(traced, events=events)


def changed_by(config: Config, change: Change, world: int) -> Config | None:
    """``config`` after ``change``; None where that is nothing new or not allowed."""
    engine = config.engine
    for name, value in change.values.items():
        have = getattr(engine, name)
        if name == "zero" and (have >= value or world == 1):
            return None
        if name in MORE and MORE[name].index(have) >= MORE[name].index(value):
            return None
        if name == "precision" and have != "fp32":
            return None
        if have == value:
            return None
    values = dict(change.values)
    if engine.deepspeed is not None and "zero" in values:
        values["deepspeed"] = None
    try:
        return configure.replace(config, "engine", values)
    except InputError:
        return None


@dataclass(frozen=True)
class Step:
    """Settings so far, and what they bring."""

    settings: tuple[str, ...]
    slower: tuple[str, ...]
    smi: int
    saved: int
    fits: bool


def remedies(
    planner: Planner, config: Config, world: int, room: int, planned: Callable[[Config], Plan] | None = None
) -> list[Step]:
    """Changes one after the other, cheapest first, until the plan fits; what saves next to nothing is left
    out, unless it is what makes it fit."""
    of = planned or (lambda c: planner.plan(c, world))
    have = of(config).smi
    steps: list[Step] = []
    settings: list[str] = []
    slower: list[str] = []
    for change in CHANGES:
        changed = changed_by(config, change, world)
        if changed is None:
            continue
        smi = of(changed).smi
        if smi > 0.99 * have and not smi <= room < have:
            continue
        # A later form of the same setting takes the place of the earlier one.
        field = change.setting.split()[0]
        kept = [i for i, setting in enumerate(settings) if setting.split()[0] != field]
        settings, slower = [settings[i] for i in kept], [slower[i] for i in kept]
        settings.append(change.setting)
        slower.append(change.slower)
        steps.append(Step(tuple(settings), tuple(slower), smi, have - smi, smi <= room))
        config, have = changed, smi
        if smi <= room:
            break
    return steps


def does_not_fit(planner: Planner, config: Config, world: int, smi: int, room: int) -> str:
    """One line for a plan of ``smi`` bytes that is above ``room``: by how much, and what would fit."""
    steps = remedies(planner, config, world, room)
    would = f"; would fit with {', '.join(steps[-1].settings)}" if steps and steps[-1].fits else ""
    largest = planner.largest_of_batch(config, world, room)
    if largest:
        would += f"; or with batch.micro {largest} (accumulation makes up for it)"
    assumed = f" ({planner.data.assumed})" if planner.data.assumed else ""
    return (
        f"does not fit: {smi / 2**20:,.0f} MiB are planned on each rank, {room / 2**20:,.0f} are there"
        f"{would}{assumed}"
    )


def words(planner: Planner, config: Config, world: int, room: int | None = None) -> list[str]:
    """The advice of a report: what would take less, and how much less."""
    planned = planner.plan(config, world)
    have, buckets = planned.smi, planned.peak.bytes["buckets"]
    gradients = planned.parameters * config.engine.arithmetic.itemsize
    lines = []
    for change in CHANGES:
        changed = changed_by(config, change, world)
        if changed is None:
            continue
        saved = have - planner.plan(changed, world).smi
        if saved > 0:
            lines.append(
                f"{change.setting} saves {_mib(saved)} ({saved / have:.0%}); slow-down {change.slower}"
            )
    if buckets > 2 * gradients:
        lines.append(
            f'Buckets take {_mib(buckets)} for gradients of {_mib(gradients)}: "auto" as reduce_bucket_size '
            "in the JSON of engine.deepspeed would do"
        )
    if room is not None:
        verdict = "fits" if have <= room else "does not fit"
        lines.insert(0, f"The plan of {_mib(have)} {verdict} in {_mib(room)}.")
    return lines


def table(planner: Planner, worlds: list[int], precisions: list[str]) -> Iterator[dict[str, Any]]:
    """Every stage x precision x checkpointing x world size: nvidia-smi's number and the cards it fits."""
    micro = planner.config.batch.micro or planner.config.batch.size
    for precision in precisions:
        for checkpointing in ("none", "selective", "full"):
            for zero in range(4):
                values = {
                    "zero": zero,
                    "precision": precision,
                    "checkpointing": checkpointing,
                    "deepspeed": None,
                }
                config = configure.replace(planner.config, "engine", values)
                for world in worlds:
                    planned = planner.plan(planner.with_micro(config, micro, world), world)
                    yield {
                        "zero": zero,
                        "precision": precision,
                        "checkpointing": checkpointing,
                        "world": world,
                        "micro_batch": micro,
                        "smi": planned.smi,
                        "peak": planned.peak.allocated,
                        "after_step": planned.moments[-1].allocated,
                        "fits": [name for name, size in GPUS.items() if planned.smi <= capacity(size)],
                    }


def explain_oom(
    config: Config,
    world: int,
    asked: int | None,
    room: int,
    data: Data | None = None,
    device: str = "cuda",
    outside: Calibration = ASSUMED,
) -> tuple[str, Planner | None]:
    """One line for an out-of-memory error: what was asked, and the settings that would fit ``room`` bytes;
    and the planner that knows it, if there could be a plan.

    ``asked`` is what the allocation that failed wanted. Plans take seconds; a failure in them says so instead
    of hiding the error.
    """
    wanted = f"{_mib(asked)} more were asked for. " if asked else ""
    try:
        planner = Planner(config, data, device, outside)
        micro = config.batch.split(world)[0]
        planned = planner.plan(config, world).smi
        if planned <= room:
            line = (
                f"out of memory with micro batch {micro}: {wanted}The plan of {_mib(planned)} fits in "
                f"{_mib(room)}, so something else holds memory: other processes, or what is not planned"
            )
            return line, planner
        largest = planner.largest_of_batch(config, world, room)
        steps = remedies(planner, config, world, room)
    except Exception as error:  # the error that is being explained matters more
        return f"out of memory: {wanted}No plan of it: {type(error).__name__}: {error}", None
    fixes = []
    if steps and steps[-1].fits:
        fixes.append(", ".join(steps[-1].settings))
    if largest:
        fixes.append(f"batch.micro {largest} (accumulation makes up for it)")
    would = "Would fit: " + "; or ".join(fixes) if fixes else "Nothing that is known here would fit"
    return f"out of memory with micro batch {micro} in {_mib(room)}: {wanted}{would}", planner


def _mib(size: float) -> str:
    return f"{size / 2**20:,.0f} MiB"
