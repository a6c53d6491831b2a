"""Rates from a run: how much longer its steps took than they are modelled to. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from diffbase.cli import InputError
from diffbase.formats import jsonl
from diffbase.line import printable
from diffbase.machine import cards
from diffbase.machine.cards import Card
from diffcore.memory import anatomy
from diffcore.memory.fitting.timing import Clock, Layout, Setting

A_NODE = 8
"""GPUs of a node at most, of a run that does not say how many it had."""


def median_rate(run: Path) -> float | None:
    """Images a second of all ranks, the median of a run's log; None before its first line."""
    lines = [line.get("train/images_per_second") for line in jsonl.read(run / "metrics.jsonl")]
    rates = sorted(rate for rate in lines if isinstance(rate, int | float) and 0 < rate < 2**53)
    return float(rates[len(rates) // 2]) if rates else None


@dataclass(frozen=True)
class Measured:
    """What a run had, and how fast it was."""

    run: Path
    card: Card
    setting: Setting
    world: int
    micro: int
    accumulation: int
    parameters: int
    images_per_second: float
    """Of all ranks together, the median of its log."""

    @classmethod
    def of(cls, run: Path) -> Measured:
        """From a run folder. InputError where it was not on a GPU that is known here, or did not log."""
        tree = anatomy.load(run)
        if not tree["measured"]:
            raise InputError(f"{run}: its report has nothing measured (memory.trace)")
        device, about = str(tree["measured"][0]["device"]), tree["run"]
        if device == "cpu":
            raise InputError(f"{run}: it trained on a CPU, which says nothing of a GPU's speed")
        if (card := cards.find(device)) is None:
            raise InputError(f"{run}: it trained on {printable(device)!r:.100}, no card that is known here")
        if (rate := median_rate(run)) is None:
            raise InputError(f"{run}: no step was logged yet")
        names = ("zero", "precision", "checkpointing", "offload")
        return cls(
            run, card, Setting(*(about[name] for name in names)), about["world"], about["micro_batch"],
            about["accumulation"], about["parameters"], rate,
        )  # fmt: skip

    @property
    def layout(self) -> Layout:
        """As few nodes as can be."""
        nodes = -(-self.world // A_NODE)
        return Layout(nodes, self.world // nodes)

    def clock(self, clock: Clock) -> Clock:
        """The model, times what this run took of it. InputError for a run of another network."""
        if self.parameters != clock.work.parameters:
            raise InputError(
                f"{self.run}: a network of {self.parameters:,} parameters, the config's has "
                f"{clock.work.parameters:,}"
            )
        there = replace(clock, card=self.card, factor=1.0)
        step = there.times(self.setting, self.layout, self.micro, self.accumulation).step
        took = self.micro * self.accumulation * self.world / self.images_per_second
        words = f"times the {took / step:.2f} that {self.run} on {self.card.name} took of the modelled"
        return replace(clock, factor=took / step, source=words)

    def is_of(self, card: Card, setting: Setting, layout: Layout, micro: int, accumulation: int) -> bool:
        """Whether a candidate is what this run had, so that its time is measured."""
        return (card, setting, layout.world, micro, accumulation) == (
            self.card, self.setting, self.world, self.micro, self.accumulation,
        )  # fmt: skip
