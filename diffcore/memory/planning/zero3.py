"""What DeepSpeed allocates around a micro batch under ZeRO-3 (runtime/zero/stage3.py,
partitioned_param_coordinator.py)."""

from __future__ import annotations

from collections import deque

from diffcore.memory.planning.recording import Event, Kind, Trace
from diffcore.memory.planning.states import FULL, Sharing
from diffcore.memory.planning.stream import Stream
from diffcore.memory.planning.zero import NORM, Plain


class Sharded(Plain):
    """Stage 3: parameters are gathered when their module needs them and released after their last use."""

    def __init__(self, stream: Stream, trace: Trace, sharing: Sharing) -> None:
        super().__init__(stream, trace, sharing)
        s = sharing
        self.trained = self.numels
        self.numels = [p.numel for p in trace.parameters]
        self.size = [n * s.itemsize for n in self.numels]
        self.gathering = 2 * s.overlap
        """CUDA stream of what is made while parameters are gathered."""
        self.persistent = {i for i, n in enumerate(self.numels) if n <= s.persist}
        self.order = [e.what for e in trace.events if e.kind == Kind.ENTER]
        self.own = [parameters for _, parameters in trace.modules]
        # Persistent parameters were allocated by ``resident``, after the flat partition.
        self.gathered: dict[int, int] = {}
        if s.gathers:
            self.gathered = {p: 1 + i for i, p in enumerate(sorted(self.persistent))}
        self.available = set(self.persistent)
        self.groups: dict[int, tuple[int | None, set[int]]] = {}
        """Parameter in flight -> (flat buffer of its group, members that still refer to it)."""
        self.waiting: dict[int, list[int]] = {}
        self.bucket: list[int] = []
        self.elements = 0
        self.reset()

    def reset(self) -> None:
        """Back to the first module, as at the beginning of every micro batch."""
        self.at = 0
        self.queue = deque((p, step) for step, module in enumerate(self.order) for p in self.own[module])
        self.fetched: dict[int, int] = {}
        self.numel_available = 0

    def micro_batch(self, last: bool) -> None:
        """As ``Plain.micro_batch``, from the first module on."""
        self.reset()
        super().micro_batch(last)

    # --- parameters --------------------------------------------------------------------------------

    def module(self, event: Event) -> None:
        """Fetch a module's parameters where it begins, release them where it ends."""
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
            if s.lifts:
                for p in wanted:
                    self.gathered[p] = self.stream.allocate("parameters", self.size[p], lane=self.gathering)
            return
        sizes = [s.share(self.numels[p]) * s.world * s.itemsize for p in wanted]
        if len(wanted) == 1:
            self.gathered[wanted[0]] = self.stream.allocate("parameters", sizes[0], lane=self.gathering)
            self.lift(sizes[0] // s.world)
            self.copied_by_gloo(sizes[0] // s.itemsize)
            self.groups[wanted[0]] = (None, set())
            return
        flat = self.stream.allocate("buckets", sum(sizes), lane=self.gathering)
        self.lift(sum(sizes) // s.world)
        self.copied_by_gloo(sum(sizes) // s.itemsize)
        members = set(wanted)
        for p in wanted:
            self.groups[p] = (flat, members)

    def lift(self, size: int) -> None:
        """This rank's offloaded share, copied to the device until it is in the gathered buffer."""
        if self.sharing.lifts:
            self.stream.brief("temporary", size, self.gathering)

    def wait(self, parameter: int) -> None:
        """Have a parameter that is in flight available, and free its group's buffer after its last member."""
        if parameter not in self.groups:
            return
        flat, members = self.groups.pop(parameter)
        if flat is not None:
            for p in sorted(members):
                if p not in self.gathered:
                    self.gathered[p] = self.stream.allocate("parameters", self.size[p], lane=self.gathering)
                    self.available.add(p)
            members.discard(parameter)
            if not any(self.groups.get(p, (None,))[0] == flat for p in members):
                self.stream.free(flat)
        self.available.add(parameter)

    def fetch(self, parameters: list[int]) -> None:
        """Gather the parameters of the next module, wait for them, and gather ahead of later modules."""
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
        """Drop the parameters that no module within ``reuse`` elements needs again."""
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
        """Free a gathered parameter."""
        self.wait(parameter)
        if parameter in self.available:
            self.available.discard(parameter)
            self.numel_available -= self.numels[parameter]
        if parameter in self.gathered:
            self.stream.free(self.gathered.pop(parameter))

    # --- gradients -----------------------------------------------------------------------------------

    def gradient(self, parameter: int, holder: int | None) -> None:
        """Put a gradient into the bucket, after reducing it if the gradient does not fit in."""
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
        copy = self.stream.allocate("buckets", padded * s.itemsize, lane=self.reducing) if copied else None
        self.copied_by_gloo(padded)
        if s.offload:
            for p in self.bucket:
                if not s.cpu:  # brought back for its norm, and for the sum over micro batches
                    self.stream.brief("temporary", s.share(self.numels[p]) * s.itemsize, self.reducing)
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
        """Reduce what is left, and drop the parameters that are still gathered."""
        self.reduce()
        # Modules whose inputs have no gradient never say that their backward has ended.
        for p in [p for p in self.gathered if p not in self.persistent]:
            self.drop(p)

    def step(self) -> None:
        """The optimizer steps on this rank's partition; the small parameters are gathered again."""
        s, size = self.sharing, self.sharing.partition(self.trained)
        for p in list(self.groups):
            self.wait(p)
        for p in list(self.gathered):
            self.drop(p)
        if not s.offload:
            for numel in self.trained:
                self.stream.brief("temporary", s.share(numel) * NORM)
            flat = self.stream.allocate("gradients", size * s.itemsize)
            if s.itemsize < FULL:
                low, flat = flat, self.stream.allocate("gradients", size * FULL)
                self.stream.free(low)
            self.stepped()
            self.stream.free(flat)
        else:
            self.stepped()
        if s.gathers:
            for p in sorted(self.persistent):
                padded = s.share(self.numels[p]) * s.world * s.itemsize
                self.gathered[p] = self.stream.allocate("parameters", padded)
        self.available = set(self.persistent)
