"""What DeepSpeed allocates around a micro batch under ZeRO-0 to 2 (runtime/zero/stage_1_and_2.py)."""

from __future__ import annotations

from diffcore.memory.planning import muon
from diffcore.memory.planning.recording import Event, Kind, Trace, kept
from diffcore.memory.planning.states import FULL, Sharing, Work
from diffcore.memory.planning.stream import Stream

NORM = 8  # norms are taken in fp64


class Plain:
    """Stage 0: gradients stay with the parameters, all are averaged in one flat copy."""

    def __init__(self, stream: Stream, trace: Trace, sharing: Sharing) -> None:
        self.stream, self.trace, self.sharing = stream, trace, sharing
        self.reducing = int(sharing.overlap and sharing.stage > 0)
        """CUDA stream of what is made while gradients are reduced."""
        self.numels = [p.numel for p in trace.parameters if not p.frozen]
        self.optimizer: Work | None = None
        self.gradients: dict[int, int] = {}
        """Parameter -> allocation that holds its gradient."""
        self.numbers: dict[int, int] = {}
        """Storage of the trace -> allocation."""
        self.size = [n * sharing.itemsize for n in self.numels]
        self.first = True
        self.holders = {e.size for e in trace.events if e.kind == Kind.GRADIENT}
        self.saved: set[int] = set().union(*kept(trace))

    def _category(self, storage: int) -> str:
        if storage in self.holders:
            return "gradients"
        return "activations" if storage in self.saved or storage in self.trace.recomputed else "temporary"

    def micro_batch(self, last: bool) -> None:
        """Add one micro batch's forward and backward to the stream; ``last``: the step follows it."""
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
        """A module begins or ends; of interest under stage 3 only."""

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
        self.stream.brief("temporary", numel * NORM, self.reducing)
        if self.sharing.itemsize < FULL:
            self.stream.brief("temporary", numel * FULL, self.reducing)

    def copied_by_gloo(self, numel: int) -> None:
        """gloo gathers into a copy and reduces one before it scatters; NCCL works in place."""
        if self.sharing.cpu:
            self.stream.brief("buckets", numel * self.sharing.itemsize)

    def backward_ends(self) -> None:
        """Average the gradients over the ranks, after the last micro batch."""
        if self.last and self.sharing.world > 1:
            self.stream.brief("buckets", sum(self.size) if len(self.size) > 1 else 0)

    def stepped(self) -> None:
        """What the optimizer allocates as it steps."""
        if self.optimizer is None:
            muon.work(self.stream, self.sharing, self.numels, self.trace.cuda)
            return
        host = self.sharing.offload and not self.sharing.cpu
        held: dict[int, int] = {}
        for number, size in self.optimizer.events:
            if size:
                held[number] = self.stream.allocate("temporary", size, host=host)
            else:
                self.stream.free(held.pop(number))

    def step(self) -> None:
        """The optimizer steps and the gradients are freed."""
        self.stepped()
        for holder in self.gradients.values():
            self.stream.free(holder)
        self.gradients.clear()


class Overlapped(Plain):
    """Stage 0 on several ranks: a bucket's gradients become one flat tensor when all are there."""

    def __init__(self, stream: Stream, trace: Trace, sharing: Sharing) -> None:
        super().__init__(stream, trace, sharing)
        self.buckets = sharing.averaged(self.numels)
        self.reduced = 0
        self.flats: list[int] = []

    def gradient(self, parameter: int, holder: int | None) -> None:
        """As ``Plain.gradient``; in the last micro batch whole buckets are reduced in their order."""
        super().gradient(parameter, holder)
        if not self.last:
            return
        self.there.add(parameter)
        while self.reduced < len(self.buckets) and self.there.issuperset(self.buckets[self.reduced]):
            self._reduce()

    def micro_batch(self, last: bool) -> None:
        """As ``Plain.micro_batch``."""
        self.there: set[int] = set()
        super().micro_batch(last)

    def _reduce(self) -> None:
        bucket = self.buckets[self.reduced]
        self.reduced += 1
        if len(bucket) > 1:  # else it is reduced where it lies
            self.flats.append(self.stream.allocate("gradients", sum(self.size[p] for p in bucket)))
            for parameter in bucket:
                if parameter in self.gradients:
                    self.stream.free(self.gradients.pop(parameter))

    def backward_ends(self) -> None:
        """What is left: with gradients that nothing reached."""
        while self.last and self.reduced < len(self.buckets):
            self._reduce()

    def step(self) -> None:
        """As ``Plain.step``."""
        super().step()
        while self.flats:
            self.stream.free(self.flats.pop())
        self.reduced = 0


class Partitioned(Plain):
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
        """As ``Plain.gradient``; under stage 2 or with overlap it goes into the bucket at once."""
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
        elif self.sharing.contiguous and self.sharing.offload:  # a copy, which autograd does not hold
            copy = self.stream.allocate("gradients", self.size[parameter])
            self.stream.free(self.gradients[parameter])
            self.gradients[parameter] = copy
        self.bucket.append(parameter)
        self.elements += self.numels[parameter]

    def reduce(self) -> None:
        """Reduce the bucket to the ranks that own its parts, and free what is no longer needed."""
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
                    self.stream.brief("buckets", sum(portion) * self.sharing.itemsize, self.reducing)
                portion = []
        for parameter in self.bucket:
            if self.sharing.offload:
                if parameter in self.mine and self.last:
                    self.hand_over(self.inside[parameter])
            elif parameter in self.mine and self.partition is None and self.sharing.contiguous:
                size = sum(self.size[p] for p in self.mine)
                self.partition = self.stream.allocate("gradients", size, lane=self.reducing)
            # On the way to an offloaded optimizer those of all but the last micro batch stay until its end.
            stays = self.sharing.offload and not self.last and parameter in self.mine
            if parameter in self.gradients and (
                (self.sharing.contiguous and not stays)
                or (self.sharing.stage == 2 and parameter not in self.mine)
            ):
                self.stream.free(self.gradients.pop(parameter))
        self.bucket.clear()
        self.elements = 0

    def backward_ends(self) -> None:
        """Reduce what is left (stage 1: after the last micro batch), and keep this rank's partition."""
        if self.sharing.stage == 1 and not self.last:
            return
        if not self.eager:
            for parameter in range(len(self.numels)):
                self.put(parameter)
        self.reduce()
        if self.sharing.offload and self.sharing.contiguous:
            while self.gradients:
                self.stream.free(self.gradients.popitem()[1])
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
        """The optimizer steps on this rank's partition, then the weights are gathered."""
        s, size = self.sharing, self.sharing.partition(self.numels)
        if not s.offload:  # else on the host, in place
            self._step_on_the_device(size)
        else:
            self.stepped()
        if s.world > 1:
            self.copied_by_gloo(s.flat(self.numels))

    def _step_on_the_device(self, size: int) -> None:
        s = self.sharing
        pieces = [*self.inside.values(), *([self.padding] if self.padding else [])]
        for numel in pieces:
            self.stream.brief("temporary", numel * NORM)
        flat = self.stream.allocate("gradients", size * s.itemsize) if len(pieces) > 1 else None
        full: int | None
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
        for holder in self.gradients.values():
            self.stream.free(holder)
        self.gradients.clear()
        self.stepped()
        gradient = full if full is not None else self.kept
        if gradient is not None:
            self.stream.free(gradient)
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
