"""What fits a card, fastest first: every setting with the largest micro batch that its plan allows.

Times need no plan, and plans take traces of the network, which are slow. So settings are looked at in the
order of the best time that each could have, and only until enough of them are known to fit.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

from diffcore.config.buckets import bucket_of
from diffcore.config.deepspeed_json import settings
from diffcore.memory.advise import MOST, Planner
from diffcore.memory.fitting.space import Space
from diffcore.memory.fitting.timing import Clock, Layout, Setting, Times
from diffcore.memory.planning.plan import Plan

SHOWN = 6
"""Settings that are looked for."""


@dataclass(frozen=True)
class Candidate:
    """A setting whose plan fits, and the time that its step is modelled to take."""

    setting: Setting
    layout: Layout
    micro: int
    accumulation: int
    plan: Plan
    times: Times

    @property
    def images(self) -> int:
        """Of an optimizer step, on all ranks."""
        return self.micro * self.accumulation * self.layout.world

    @property
    def images_per_second(self) -> float:
        """Of all ranks together."""
        return self.images / self.times.step

    @property
    def order(self) -> float:
        """Seconds an image; the ninth digit is no difference."""
        return float(f"{1 / self.images_per_second:.8g}")


@dataclass(frozen=True)
class Chooser:
    """Plans and times of one network on one card."""

    planner: Planner
    space: Space
    clock: Clock

    @property
    def room(self) -> int:
        """Bytes of the card."""
        return self.clock.card.usable

    def ranked(self, layouts: Sequence[Layout], most: int = SHOWN) -> list[Candidate]:
        """At most ``most`` settings that fit, by seconds an image: each with its largest micro batch, whose
        plan is of the first rank. Empty where nothing fits."""
        waiting: list[tuple[float, int, Setting, Layout, Candidate | None]] = []
        order = 0
        for layout in layouts:
            if not (micros := self.space.micros(layout)):
                continue
            for setting in self.space.settings(self.clock.card, layout):
                best = self._timed(setting, layout, micros[-1])
                heapq.heappush(waiting, (best, order, setting, layout, None))
                order += 1
        found: list[Candidate] = []
        able: dict[
            Layout, bool
        ] = {}  # asked where the first setting does not fit, before all others are tried
        while waiting and len(found) < most:
            _, order, setting, layout, candidate = heapq.heappop(waiting)
            if candidate is not None:
                found.append(candidate)
            elif not able.get(layout, True):
                continue
            elif (candidate := self.candidate(setting, layout)) is not None:
                able[layout] = True
                heapq.heappush(waiting, (candidate.order, order, setting, layout, candidate))
            elif layout not in able:
                able[layout] = self.fits_at_all(layout)
        return found

    def candidate(self, setting: Setting, layout: Layout) -> Candidate | None:
        """``setting`` with the largest micro batch that fits; None where none does."""
        micros = [n for n in self.space.micros(layout) if n <= MOST]
        low, high = 0, len(micros)  # the first ``low`` of them fit, those from ``high`` on do not
        best: Plan | None = None
        while low < high:
            middle = (low + high) // 2 if high < len(micros) else high - 1  # the largest fits often
            plan = self.plan(setting, layout, micros[middle])
            if plan.smi <= self.room:
                low, best = middle + 1, plan
            else:
                high = middle
        if best is None:
            return None
        times = self.clock.times(setting, layout, best.micro, best.accumulation)
        return Candidate(setting, layout, best.micro, best.accumulation, best, times)

    def plan(self, setting: Setting, layout: Layout, micro: int, size: int | None = None) -> Plan:
        """Of the first rank, whose share is the largest."""
        return self.planner.plan(self.space.with_choice(setting, micro, size), layout.world)

    def bucket(self, found: Candidate) -> int:
        """Elements of a bucket of gradients, as DeepSpeed's JSON, or buckets.py for an "auto", has it."""
        config = self.space.with_choice(found.setting, found.micro)
        numels = [one.numel for one in self.planner.trace(config, found.micro).parameters]
        return bucket_of(settings(config, found.layout.world, numels), numels)

    def least(self, layout: Layout) -> int:
        """Bytes of the plan that takes least; 0 where the global batch does not divide among the ranks."""
        micros = self.space.micros(layout)[:1]
        thrifty = self.space.thrifty(self.clock.card, layout)
        return min((self.plan(one, layout, n).smi for one in thrifty for n in micros), default=0)

    def fits_at_all(self, layout: Layout) -> bool:
        """Whether any setting fits, with the smallest micro batch."""
        if not (micros := self.space.micros(layout)):
            return False
        return any(
            self.plan(setting, layout, micros[0]).smi <= self.room
            for setting in self.space.thrifty(self.clock.card, layout)
        )

    def _timed(self, setting: Setting, layout: Layout, micro: int) -> float:
        accumulation = self.space.config.batch.size // (layout.world * micro)
        step = self.clock.times(setting, layout, micro, accumulation).step
        return float(f"{step / self.space.config.batch.size:.8g}")
