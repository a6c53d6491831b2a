"""The memory of a run before the run: every category on one rank at the moments of a step.

The micro batch is traced with fake tensors (activations.py), placed inside DeepSpeed's step (replay.py,
states.py) and given to a model of CUDA's allocator (allocator.py); what is outside torch comes from a
calibration. On the CPU there is no such allocator: allocated is all.
"""

from __future__ import annotations

import gc
from collections import defaultdict
from collections.abc import Container
from dataclasses import dataclass, field, replace
from typing import Any

from diffbase.cli import InputError
from diffbase.redaction import shown
from diffbase.system_error import told
from diffcore.config.stages import Span, check
from diffcore.config.tree import Config
from diffcore.memory.calibration import ASSUMED, Calibration, capacity
from diffcore.memory.planning.activations import trace
from diffcore.memory.planning.allocator import CachingAllocator
from diffcore.memory.planning.recording import Event, Kind, Trace, kept
from diffcore.memory.planning.replay import replay
from diffcore.memory.planning.start import start_peak
from diffcore.memory.planning.states import CATEGORIES, Sharing
from diffcore.memory.planning.stream import Stream
from shards.remote.cache import fetch_header
from shards.schema import CARTOON_SET, Attribute
from shards.table import Index

MOMENTS = ("forward peak", "after forward", "backward peak", "step peak", "after step")
SIZE = 64
"""Edge of the pictures, where the shards are not there to say it."""


@dataclass(frozen=True)
class Data:
    """What the shards decide about the network."""

    schema: tuple[Attribute, ...]
    size: int
    """Edge of the packed pictures, pixels."""
    assumed: str = ""

    @classmethod
    def of(cls, config: Config) -> Data:
        """From the packed shards; without them, Cartoon Set's labels (or CIFAR-10's ten classes, where the
        path has that name) at 64 pixels. InputError where ``train.stages`` cannot be of them."""
        data = cls._of(config)
        check(config.train.stages, config.model, data.size)
        return data

    @classmethod
    def _of(cls, config: Config) -> Data:
        path = config.data.path
        why = f"{shown(path)} is not there"
        if isinstance(path, str):
            try:
                header = fetch_header(path)[1]
                return cls(header.attributes, header.preprocessing.size)
            except InputError as error:
                why = str(error)
            except TimeoutError as error:
                why = told(error)
        elif (path / "index.json").exists():
            index = Index.load(path)
            return cls(index.schema, index.size)
        schema: tuple[Attribute, ...] = tuple(CARTOON_SET)
        words = "Cartoon Set's labels"
        if "cifar" in str(path):
            schema, words = (Attribute("class", 10),), "ten classes"
        return cls(schema, SIZE, f"{why}: {words} and {SIZE} x {SIZE} pixels are assumed")


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a step on one rank."""

    name: str
    bytes: dict[str, int]
    """By category, tensors on the device."""
    host: int
    """In the host's memory: what is offloaded."""
    reserved: int
    """Held by CUDA's caching allocator; on the CPU what is allocated."""

    @property
    def allocated(self) -> int:
        """Bytes of all tensors on the device."""
        return sum(self.bytes.values())


@dataclass(frozen=True)
class Plan:
    """One rank's memory, predicted."""

    rank: int
    world: int
    micro: int
    accumulation: int
    stage: int
    precision: str
    checkpointing: str
    offload: str
    parameters: int
    moments: tuple[Moment, ...]
    gradients: int
    """Bytes of gradients that the optimizer finds when backward has ended."""
    layers: tuple[tuple[str, int], ...]
    """Modules and the bytes that they leave for backward, largest first."""
    timeline: tuple[tuple[str, dict[str, int]], ...]
    """(phase, bytes by category) through one step, where the total turns."""
    outside: Calibration
    device: str
    notes: tuple[str, ...] = ()
    strategy: str = ""
    """How it is trained, where that is not a ZeRO stage of a config."""
    stream: Stream | None = field(default=None, repr=False, compare=False)
    """What it was counted from."""

    def at(self, name: str) -> Moment:
        """The moment of that name, one of ``MOMENTS``."""
        return self.moments[MOMENTS.index(name)]

    @property
    def peak(self) -> Moment:
        """The moment at which most is allocated."""
        return max(self.moments, key=lambda moment: moment.allocated)

    @property
    def reserved(self) -> int:
        """Most bytes that the allocator holds at any of the moments."""
        return max(moment.reserved for moment in self.moments)

    @property
    def smi(self) -> int:
        """The number that nvidia-smi will show: segments are not given back, so the largest counts."""
        if self.device == "cpu":
            return self.peak.allocated
        return self.reserved + self.outside.context + self.outside.workspaces + self.outside.nccl

    def fits(self, gigabytes: float) -> bool:
        """Whether a card that is sold with so many GB holds it."""
        return self.smi <= capacity(gigabytes)


def plan(
    config: Config,
    world: int = 1,
    rank: int = 0,
    device: str = "cuda",
    data: Data | None = None,
    traced: Trace | None = None,
    outside: Calibration = ASSUMED,
) -> Plan:
    """Predict rank ``rank`` of ``world``. InputError as training itself would say it.

    ``device`` "cpu" is a run over gloo, whose reduce-scatter works on a copy. Where ``train.stages`` has
    smaller images, the steps of the largest are planned.
    """
    data = data or Data.of(config)
    micro, accumulation = config.batch.split(world)
    traced = traced or trace_quietly(config, data, micro, device)
    numels = [parameter.numel for parameter in traced.parameters]
    matrices = {i: p.matrix for i, p in enumerate(traced.parameters) if p.matrix is not None}
    sharing = Sharing.of(config, world, numels, rank, cpu=device == "cpu", matrices=matrices)
    begin = start_peak(sharing, numels)
    before = f"before the first step at most {(begin or 0) / 2**20:,.1f} MiB are allocated"
    stream = replay(traced, sharing)
    moments, ended, timeline = account(stream, device)
    return Plan(
        rank,
        world,
        micro,
        accumulation,
        config.engine.zero,
        config.engine.precision,
        config.engine.checkpointing,
        config.engine.offload,
        sum(numels),
        moments,
        ended.bytes["gradients"],
        layers(traced),
        timeline,
        outside,
        device,
        (data.assumed,) * bool(data.assumed) + (before,) * (begin is not None),
        stream=stream,
    )


def trace_quietly(
    config: Config, data: Data, micro: int, device: str = "cuda", span: Span | None = None
) -> Trace:
    """A trace of a step of ``span`` (None: the run's last) with the garbage collector off: it would free
    tensors at other moments each time."""
    side = (span or config.train.spans[-1]).side(data.size)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        cuda = device != "cpu"
        return trace(config, list(data.schema), side, micro, modules=True, cuda=cuda, packed=data.size)
    finally:
        if collecting:
            gc.enable()


def between(low: Trace, high: Trace, micro: int) -> Trace | None:
    """The trace of ``micro`` samples from those of two other numbers: sizes are affine in the batch.

    None where the two do not take the same steps.
    """
    same = len(low.events) == len(high.events) and all(
        a.kind == b.kind and a.what == b.what for a, b in zip(low.events, high.events, strict=True)
    )
    if not same:
        return None

    def size(a: int, b: int) -> int:
        return a + (b - a) * (micro - low.micro) // (high.micro - low.micro)

    events = [
        Event(a.kind, a.what, size(a.size, b.size) if a.kind == Kind.ALLOCATE else a.size)
        for a, b in zip(low.events, high.events, strict=True)
    ]
    return replace(low, micro=micro, inputs=size(low.inputs, high.inputs), events=events)


def account(
    stream: Stream, device: str
) -> tuple[tuple[Moment, ...], Moment, tuple[tuple[str, dict[str, int]], ...]]:
    """The moments of the stream's last step, the end of its backward, and its timeline."""
    allocator = CachingAllocator()
    held: dict[int, int] = {}
    total: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
    host = 0
    moments: dict[str, Moment] = {}
    timeline: list[tuple[str, dict[str, int]]] = []
    at, start = 0, len(stream.marks) - 1 - [name for name, _ in reversed(stream.marks)].index("start")

    def moment(name: str) -> Moment:
        reserved = allocator.reserved if device != "cpu" else sum(total.values())
        return Moment(name, dict(total), host, reserved)

    for number, (phase, end) in enumerate(stream.marks):
        recorded = number > start
        peak = moment(phase)
        rising = False
        for what, size in stream.events[at:end]:
            sign = size or -held.pop(what)
            if size:
                held[what] = size
            if stream.host[what]:
                host += sign
                continue
            if device != "cpu" and size:
                allocator.allocate(what, size, stream.lane[what])
            elif device != "cpu":
                allocator.release(what)
            if recorded and rising and sign < 0:
                timeline.append((phase, dict(total)))
            rising = sign > 0
            total[stream.category[what]] += sign
            if recorded and rising and sum(total.values()) > peak.allocated:
                peak = moment(phase)
        at = end
        if recorded:
            timeline.append((phase, dict(total)))
            name = f"{phase} peak"
            if phase == "forward":
                moments["after forward"] = replace(moment(phase), name="after forward")
            elif phase == "backward":
                ended = moment("backward end")
            if name not in moments or peak.allocated > moments[name].allocated:
                moments[name] = replace(peak, name=name)
            moments["after step"] = replace(moment(phase), name="after step")
    return tuple(moments[name] for name in MOMENTS), ended, tuple(_thinned(timeline))


def _thinned(timeline: list[tuple[str, dict[str, int]]], most: int = 400) -> list[tuple[str, dict[str, int]]]:
    """At most ``most`` points, the largest of each run kept."""
    if len(timeline) <= most:
        return timeline
    run = -(-len(timeline) // most)
    runs = [timeline[i : i + run] for i in range(0, len(timeline), run)]
    return [max(points, key=lambda point: sum(point[1].values())) for points in runs]


def layers(traced: Trace, states: Container[int] = ()) -> tuple[tuple[str, int], ...]:
    """What each module leaves for the last backward, largest first; "network" is what it does itself.

    ``states``: storages that are not of the micro batch.
    """
    sizes: dict[str, int] = defaultdict(int)
    *_, last = {}, *kept(traced)
    for storage, size in last.items():
        if storage not in states:
            sizes[traced.layers[storage] or "(loss)"] += size
    return tuple(sorted(sizes.items(), key=lambda item: -item[1]))


def as_json(plan: Plan) -> dict[str, Any]:
    """The plan as an entry of anatomy.json's ``ranks``."""
    return {
        "rank": plan.rank,
        "device": plan.device,
        "parameters": plan.parameters,
        "micro_batch": plan.micro,
        "moments": [moment_json(m) for m in plan.moments],
        "layers": [{"name": name, "bytes": size} for name, size in plan.layers],
        "timeline": [{"phase": phase, "bytes": sizes} for phase, sizes in plan.timeline],
        "closure": closure(plan),
        "notes": list(plan.notes),
    }


def moment_json(moment: Moment) -> dict[str, Any]:
    """A moment as an entry of anatomy.json's ``moments``; sizes in bytes."""
    return {
        "name": moment.name,
        "bytes": moment.bytes,
        "host": moment.host,
        "allocated": moment.allocated,
        "reserved": moment.reserved,
    }


def closure(plan: Plan) -> list[dict[str, Any]]:
    """The sum that ends in nvidia-smi's number, row by row."""
    peak = plan.peak
    rows: list[tuple[str, int, str]] = [(name, size, "planned") for name, size in peak.bytes.items() if size]
    if plan.device != "cpu":
        how, nccl = (
            "measured" if yes else "assumed"
            for yes in (plan.outside.measured, plan.outside.nccl_known(plan.world))
        )
        rows.append(("allocator: rounding, fragments, cache", plan.reserved - peak.allocated, "planned"))
        rows.append(("library workspaces", plan.outside.workspaces, how))
        rows.append(("CUDA context", plan.outside.context, how))
        rows.append(("NCCL", plan.outside.nccl, nccl))
    return [{"name": name, "bytes": size, "source": source} for name, size, source in rows]
