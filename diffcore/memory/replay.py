"""A whole training step on one rank, allocation by allocation: the traced micro batch inside DeepSpeed.

The trace says when the network's tensors and gradients come and go. What DeepSpeed does around them depends
on the stage: buckets, reduced slices, gathered parameters, the flat fp32 gradient of the optimizer. Each
stage's backward and step are written here once more as the sequence of their allocations (deepspeed 0.19,
runtime/zero/stage_1_and_2.py, stage3.py, partitioned_param_coordinator.py), so that any peak of any setting
is found in milliseconds, without DeepSpeed and without its processes.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from diffcore.memory.activations import Event, Kind, Trace
from diffcore.memory.states import Sharing, resident

NORM = 8  # norms are taken in fp64
FULL = 4  # the optimizer steps in fp32


@dataclass
class Stream:
    """Allocations (number, bytes > 0) and frees (number, 0) in order, and where the phases end."""

    events: list[tuple[int, int]] = field(default_factory=list)
    category: list[str] = field(default_factory=list)
    layer: list[str] = field(default_factory=list)
    host: list[bool] = field(default_factory=list)
    marks: list[tuple[str, int]] = field(default_factory=list)
    """(phase that ends here, number of events so far)"""

    def allocate(self, category: str, size: int, layer: str = "", host: bool = False) -> int:
        number = len(self.category)
        self.category.append(category)
        self.layer.append(layer)
        self.host.append(host)
        if size:
            self.events.append((number, size))
        return number

    def free(self, number: int) -> None:
        self.events.append((number, 0))

    def brief(self, category: str, size: int) -> None:
        """Allocated and freed at once."""
        if size:
            self.free(self.allocate(category, size))

    def mark(self, phase: str) -> None:
        self.marks.append((phase, len(self.events)))


def replay(trace: Trace, sharing: Sharing, steps: int = 1) -> Stream:
    """Optimizer steps in their steady state: ``sharing.accumulation`` micro batches (at most three: the
    later ones are alike) and the optimizer. Marks of a step: start, forward (of each micro batch), backward,
    step."""
    stream = Stream()
    numels = [p.numel for p in trace.parameters]
    for block in resident(sharing, numels, trace.buffers, trace.inputs):
        stream.allocate(block.category, block.size, host=block.host and not sharing.cpu)
    stages = {0: _Plain, 1: _Partitioned, 2: _Partitioned, 3: _Sharded}
    stage = stages[sharing.stage](stream, trace, sharing)
    count = min(sharing.accumulation, 3)
    for _ in range(steps):
        stream.mark("start")
        for micro_step in range(count):
            stage.micro_batch(last=micro_step == count - 1)
        stream.mark("backward")
        stage.step()
        stream.mark("step")
    return stream


class _Plain:
    """Stage 0: gradients stay with the parameters, all are averaged in one flat copy."""

    def __init__(self, stream: Stream, trace: Trace, sharing: Sharing) -> None:
        self.stream, self.trace, self.sharing = stream, trace, sharing
        self.numels = [p.numel for p in trace.parameters]
        self.gradients: dict[int, int] = {}
        """Parameter -> allocation that holds its gradient."""
        self.numbers: dict[int, int] = {}
        """Storage of the trace -> allocation."""
        self.size = [n * sharing.itemsize for n in self.numels]
        self.first = True
        self.holders = {e.size for e in trace.events if e.kind == Kind.GRADIENT}
        self.saved = self._saved()

    def _saved(self) -> set[int]:
        """Storages of forward that are still there when backward begins: what autograd saved."""
        alive: set[int] = set()
        for event in self.trace.events:
            if event.kind == Kind.ALLOCATE:
                alive.add(event.what)
            elif event.kind == Kind.FREE:
                alive.discard(event.what)
            elif event.kind == Kind.TURN:
                break
        return alive

    def _category(self, storage: int) -> str:
        if storage in self.holders:
            return "gradients"
        return "activations" if storage in self.saved or storage in self.trace.recomputed else "temporary"

    def micro_batch(self, last: bool) -> None:
        stream, self.last = self.stream, last
        self.numbers.clear()
        for event in self.trace.events:
            if event.kind == Kind.ALLOCATE:
                if self.trace.copies.get(event.what) in self.gradients:
                    continue
                self.numbers[event.what] = stream.allocate(
                    self._category(event.what), event.size, self.trace.layers[event.what]
                )
            elif event.kind == Kind.FREE:
                stream.free(self.numbers.pop(event.what))
            elif event.kind == Kind.GRADIENT:
                self.gradient(event.what, self.numbers.pop(event.size, None))
            elif event.kind == Kind.TURN:
                stream.mark("forward")
            else:
                self.module(event)
        self.backward_ends()

    def module(self, event: Event) -> None:
        pass

    def gradient(self, parameter: int, holder: int | None) -> None:
        """Autograd has completed the gradient of ``parameter``; None if it was added to the one that is there
        without a copy."""
        if holder is None:
            return
        if parameter in self.gradients:  # added to what the micro batches before left
            self.stream.free(holder)
        else:
            self.gradients[parameter] = holder

    def hand_over(self, numel: int) -> None:
        """A reduced gradient's norm, and its fp32 copy on the way to an offloaded optimizer."""
        self.stream.brief("temporary", numel * NORM)
        if self.sharing.itemsize < FULL:
            self.stream.brief("temporary", numel * FULL)

    def copied_by_gloo(self, numel: int) -> None:
        """gloo gathers into a copy and reduces one before it scatters; NCCL works in place."""
        if self.sharing.cpu:
            self.stream.brief("buckets", numel * self.sharing.itemsize)

    def backward_ends(self) -> None:
        if self.last and self.sharing.world > 1:
            self.stream.brief("buckets", sum(self.size) if len(self.size) > 1 else 0)

    def step(self) -> None:
        for holder in self.gradients.values():
            self.stream.free(holder)
        self.gradients.clear()


class _Partitioned(_Plain):
    """Stages 1 and 2: gradients pass through buckets into this rank's partition."""

    def __init__(self, stream: Stream, trace: Trace, sharing: Sharing) -> None:
        super().__init__(stream, trace, sharing)
        self.slices = sharing.slices(self.numels)
        self.mine = set(sharing.mine(self.numels))
        self.buffers: list[int] = []
        self.bucket: list[int] = []
        self.elements = 0
        self.partition: int | None = None
        self.kept: int | None = None
        self.pad: int | None = None
        self.inside = self.pieces()
        self.padding = sharing.partition(self.numels) - sum(self.inside.values())
        self.eager = sharing.stage == 2 or sharing.overlap

    def gradient(self, parameter: int, holder: int | None) -> None:
        super().gradient(parameter, holder)
        if not self.buffers and self.sharing.contiguous:
            size = self.sharing.bucket * self.sharing.itemsize
            self.buffers = [self.stream.allocate("buckets", size) for _ in range(1 + self.sharing.overlap)]
        if self.eager and (self.sharing.stage == 2 or self.last):
            self.put(parameter)

    def put(self, parameter: int) -> None:
        """Move a complete gradient into the bucket, after reducing what no longer fits beside it."""
        if self.elements + self.numels[parameter] > self.sharing.bucket:
            self.reduce()
        if self.sharing.contiguous and self.numels[parameter] <= self.sharing.bucket:
            self.stream.free(self.gradients.pop(parameter))
        self.bucket.append(parameter)
        self.elements += self.numels[parameter]

    def reduce(self) -> None:
        # Neighbouring slices for one rank are one; several are flattened into a copy, in portions of a
        # bucket, reduced and copied back.
        runs: list[tuple[int, int]] = []
        for rank, numel in (piece for parameter in self.bucket for piece in self.slices[parameter]):
            if runs and runs[-1][0] == rank:
                numel += runs.pop()[1]
            runs.append((rank, numel))
        portion: list[int] = []
        for number, (_, numel) in enumerate(runs, 1):
            portion.append(numel)
            if sum(portion) > self.sharing.bucket or number == len(runs):
                if len(portion) > 1:
                    self.stream.brief("buckets", sum(portion) * self.sharing.itemsize)
                portion = []
        for parameter in self.bucket:
            if self.sharing.offload:
                if parameter in self.mine and self.last:
                    self.hand_over(self.inside[parameter])
            elif parameter in self.mine and self.partition is None and self.sharing.contiguous:
                size = sum(self.size[p] for p in self.mine)
                self.partition = self.stream.allocate("gradients", size)
            if parameter in self.gradients and (
                self.sharing.contiguous or (self.sharing.stage == 2 and parameter not in self.mine)
            ):
                self.stream.free(self.gradients.pop(parameter))
        self.bucket.clear()
        self.elements = 0

    def backward_ends(self) -> None:
        if self.sharing.stage == 1 and not self.last:
            return
        if not self.eager:
            for parameter in range(len(self.numels)):
                self.put(parameter)
        self.reduce()
        if self.kept is None:
            self.kept = self.partition
        elif self.partition is not None:  # added to what the micro batches before left
            self.stream.free(self.partition)
        self.partition = None
        while self.buffers:
            self.stream.free(self.buffers.pop(0))
        if self.last and self.padding and not self.sharing.offload:
            self.pad = self.stream.allocate("gradients", self.padding * self.sharing.itemsize)

    def step(self) -> None:
        s, size = self.sharing, self.sharing.partition(self.numels)
        if not s.offload:  # else on the host, in place
            self._step_on_the_device(size)
        if s.world > 1:
            self.copied_by_gloo(s.flat(self.numels))

    def _step_on_the_device(self, size: int) -> None:
        s = self.sharing
        pieces = [*self.inside.values(), *([self.padding] if self.padding else [])]
        for numel in pieces:
            self.stream.brief("temporary", numel * NORM)
        flat = self.stream.allocate("gradients", size * s.itemsize) if len(pieces) > 1 else None
        if s.itemsize < FULL:
            full = self.stream.allocate("gradients", size * FULL)
            if flat is not None:
                self.stream.free(flat)
        else:
            full = flat
        if self.pad is not None:
            self.stream.free(self.pad)
            self.pad = None
        if self.kept is not None and full is not None:
            self.stream.free(self.kept)
            self.kept = None
        for holder in [*self.gradients.values(), full if full is not None else self.kept]:
            if holder is not None:
                self.stream.free(holder)
        self.gradients.clear()
        self.kept = None

    def pieces(self) -> dict[int, int]:
        """Parameter -> its elements that are in this rank's partition, where there are any."""
        size, start, pieces = self.sharing.partition(self.numels), 0, {}
        first, last = self.sharing.rank * size, (self.sharing.rank + 1) * size
        for number, numel in enumerate(self.numels):
            inside = min(start + numel, last) - max(start, first)
            if inside > 0:
                pieces[number] = inside
            start += numel
        return pieces


class _Sharded(_Plain):
    """Stage 3: parameters are gathered when their module needs them and released after their last use."""

    def __init__(self, stream: Stream, trace: Trace, sharing: Sharing) -> None:
        super().__init__(stream, trace, sharing)
        s = sharing
        self.persistent = {i for i, n in enumerate(self.numels) if n <= s.persist}
        self.order = [e.what for e in trace.events if e.kind == Kind.ENTER]
        self.own = [parameters for _, parameters in trace.modules]
        # Persistent parameters were allocated by ``resident``, after the flat partition.
        self.gathered: dict[int, int] = {}
        if s.world > 1:
            self.gathered = {p: 1 + i for i, p in enumerate(sorted(self.persistent))}
        self.available = set(self.persistent)
        self.groups: dict[int, tuple[int | None, set[int]]] = {}
        """Parameter in flight -> (flat buffer of its group, members that still refer to it)."""
        self.waiting: dict[int, list[int]] = {}
        self.bucket: list[int] = []
        self.elements = 0
        self.reset()

    def reset(self) -> None:
        self.at = 0
        self.queue = deque((p, step) for step, module in enumerate(self.order) for p in self.own[module])
        self.fetched: dict[int, int] = {}
        self.numel_available = 0

    def micro_batch(self, last: bool) -> None:
        self.reset()
        super().micro_batch(last)

    # --- parameters --------------------------------------------------------------------------------

    def module(self, event: Event) -> None:
        if event.kind == Kind.ENTER:
            self.fetch(self.own[event.what])
        else:
            self.release(self.own[event.what])

    def gather(self, parameters: list[int]) -> None:
        """All-gather into one flat buffer for the group; the parameters are copied out when waited for."""
        wanted = [p for p in parameters if p not in self.available and p not in self.groups]
        if not wanted:
            return
        s = self.sharing
        self.numel_available += sum(self.numels[p] for p in wanted)
        if s.world == 1:
            self.available.update(wanted)
            return
        sizes = [s.share(self.numels[p]) * s.world * s.itemsize for p in wanted]
        if len(wanted) == 1:
            self.gathered[wanted[0]] = self.stream.allocate("parameters", sizes[0])
            self.copied_by_gloo(sizes[0] // s.itemsize)
            self.groups[wanted[0]] = (None, set())
            return
        flat = self.stream.allocate("buckets", sum(sizes))
        self.copied_by_gloo(sum(sizes) // s.itemsize)
        members = set(wanted)
        for p in wanted:
            self.groups[p] = (flat, members)

    def wait(self, parameter: int) -> None:
        if parameter not in self.groups:
            return
        flat, members = self.groups.pop(parameter)
        if flat is not None:
            for p in sorted(members):
                if p not in self.gathered:
                    self.gathered[p] = self.stream.allocate("parameters", self.size[p])
                    self.available.add(p)
            members.discard(parameter)
            if not any(self.groups.get(p, (None,))[0] == flat for p in members):
                self.stream.free(flat)
        self.available.add(parameter)

    def fetch(self, parameters: list[int]) -> None:
        s = self.sharing
        self.gather(parameters)
        for p in parameters:
            self.wait(p)
        unseen = {p for p in parameters if self.fetched.get(p, -1) < self.at}
        for _ in range(len(unseen)):
            if self.queue:
                p, step = self.queue.popleft()
                self.fetched[p] = step
        room = min(s.live - self.numel_available, s.prefetch)
        ahead: list[int] = []
        numel = 0
        while self.queue and numel < room:
            p, step = self.queue.popleft()
            self.fetched[p] = max(self.fetched.get(p, -1), step)
            if p not in self.available and p not in self.groups and p not in ahead:
                ahead.append(p)
                numel += self.numels[p]
        self.gather(ahead)
        self.at += 1

    def release(self, parameters: list[int]) -> None:
        if not parameters:
            return
        going = {p for p in parameters if p not in self.persistent and self.fetched.get(p, -1) <= self.at}
        traversed = 0
        for module in self.order[self.at :]:
            if traversed >= self.sharing.reuse or not going:
                break
            going -= set(self.own[module])
            traversed += sum(self.numels[p] for p in self.own[module])
        for p in going:
            self.drop(p)

    def drop(self, parameter: int) -> None:
        self.wait(parameter)
        if parameter in self.available:
            self.available.discard(parameter)
            self.numel_available -= self.numels[parameter]
        if parameter in self.gathered:
            self.stream.free(self.gathered.pop(parameter))

    # --- gradients -----------------------------------------------------------------------------------

    def gradient(self, parameter: int, holder: int | None) -> None:
        assert holder is not None  # no gradient is left of the micro batch before
        s, numel = self.sharing, self.numels[parameter]
        if self.elements + numel > s.bucket and self.elements:
            self.reduce()
        if s.contiguous and self.elements + numel <= s.bucket:
            self.stream.free(holder)
        else:
            self.gradients[parameter] = holder
        self.bucket.append(parameter)
        self.elements += numel

    def reduce(self) -> None:
        """Reduce-scatter of an interleaved copy, and this rank's part into its flat gradients."""
        if not self.bucket:
            return
        s = self.sharing
        padded = sum(s.share(self.numels[p]) for p in self.bucket) * s.world
        copied = len(self.bucket) > 1 or padded != self.elements
        copy = self.stream.allocate("buckets", padded * s.itemsize) if copied else None
        self.copied_by_gloo(padded)
        if s.offload:
            for p in self.bucket:
                if not s.cpu:  # brought back for its norm, and for the sum over micro batches
                    self.stream.brief("temporary", s.share(self.numels[p]) * s.itemsize)
                if self.last:
                    self.hand_over(s.share(self.numels[p]))
        if copy is not None:
            self.stream.free(copy)
        for p in self.bucket:
            if p in self.gradients:
                self.stream.free(self.gradients.pop(p))
        self.bucket.clear()
        self.elements = 0

    def backward_ends(self) -> None:
        self.reduce()
        # Modules whose inputs have no gradient never say that their backward has ended.
        for p in [p for p in self.gathered if p not in self.persistent]:
            self.drop(p)

    def step(self) -> None:
        s, size = self.sharing, self.sharing.partition(self.numels)
        for p in list(self.groups):
            self.wait(p)
        for p in list(self.gathered):
            self.drop(p)
        if not s.offload:
            for numel in self.numels:
                self.stream.brief("temporary", s.share(numel) * NORM)
            flat = self.stream.allocate("gradients", size * s.itemsize)
            if s.itemsize < FULL:
                low, flat = flat, self.stream.allocate("gradients", size * FULL)
                self.stream.free(low)
            self.stream.free(flat)
        if s.world > 1:
            for p in sorted(self.persistent):
                padded = s.share(self.numels[p]) * s.world * s.itemsize
                self.gathered[p] = self.stream.allocate("parameters", padded)
        self.available = set(self.persistent)
