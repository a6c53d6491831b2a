"""The settings that may be chosen: what is free, what is held, and a config with a choice in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

from diffbase.cli import InputError
from diffbase.machine.cards import Card
from diffcore.config import configure
from diffcore.config.offload import OFFLOADS
from diffcore.config.tree import Config
from diffcore.memory.fitting.timing import Layout, Setting

CHOICES: dict[str, Sequence[Any]] = {
    "zero": (0, 1, 2, 3),
    "precision": ("bf16", "fp16", "fp32"),
    "checkpointing": ("none", "selective", "full"),
    "offload": tuple(OFFLOADS),
}
"""Fields of ``engine`` and what they may be; of equal times the earlier ones come first."""


@dataclass(frozen=True)
class Space:
    """A config, and which of its settings are held as they are there."""

    config: Config
    held: Mapping[str, Any] = field(default_factory=dict)
    """Fields of ``engine``, and "micro", with the value that each keeps."""

    def settings(self, card: Card, layout: Layout) -> list[Setting]:
        """All that may be chosen on such cards, the config's own values first.

        On one rank ZeRO-2 and 3 without offloading share nothing more than ZeRO-1, and are left out.
        """
        free: dict[str, Sequence[Any]] = {**CHOICES, "precision": ("bf16" if card.bf16 else "fp16", "fp32")}
        for name in free:
            own = getattr(self.config.engine, name)
            first = [self.held[name]] if name in self.held else [own] * (own in free[name])
            free[name] = first if name in self.held else list(dict.fromkeys([*first, *free[name]]))
        found = [Setting(*values) for values in product(*free.values())]
        alone = layout.world == 1 and "zero" not in self.held
        found = [one for one in found if not (alone and one.zero > 1 and one.offload == "none")]
        return [setting for setting in found if self._allowed(setting)]

    def _allowed(self, setting: Setting) -> bool:
        if setting.zero not in OFFLOADS[setting.offload].stages:
            return False
        try:
            configure.replace(self.config, "engine", asdict(setting))
        except InputError:
            return False
        return True

    def thrifty(self, card: Card, layout: Layout) -> list[Setting]:
        """Of each stage those that take least memory: what fits nowhere among them fits nowhere."""
        found = self.settings(card, layout)
        again, halves = CHOICES["checkpointing"].index, any(one.precision != "fp32" for one in found)
        most = max((again(one.checkpointing) for one in found), default=0)
        least = [
            one
            for one in found
            if again(one.checkpointing) == most and (one.precision != "fp32" or not halves)
        ]
        return sorted(least, key=lambda one: (-one.zero, -CHOICES["offload"].index(one.offload)))

    def micros(self, layout: Layout) -> list[int]:
        """The micro batches that the global batch can be made of on these GPUs, rising; none where it does
        not divide among them."""
        size, world = self.config.batch.size, layout.world
        if size % world:
            return []
        part = size // world
        if "micro" in self.held:
            return [self.held["micro"]] * (part % self.held["micro"] == 0)
        return sorted(_divisors(part))

    def with_choice(self, setting: Setting, micro: int, size: int | None = None) -> Config:
        """The config with these in it; ``size``: another global batch."""
        batch = {"micro": micro, "size": size or self.config.batch.size}
        return configure.changed(self.config, {"engine": asdict(setting), "batch": batch})


def _divisors(number: int) -> Iterator[int]:
    for one in range(1, int(number**0.5) + 1):
        if number % one == 0:
            yield one
            if one * one != number:
                yield number // one
