"""``fit`` turned round: the smallest card, the fewest GPUs, the largest batch, the longest side of an image.

Each but the number of GPUs, which is counted up, is a search among what rises in memory: what was found fits,
and its neighbour does not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from diffbase.cli import InputError
from diffbase.machine.cards import CARDS, Card
from diffcore.config import configure
from diffcore.memory.advise import MOST, Planner
from diffcore.memory.calibration import of_card
from diffcore.memory.fitting.choose import Candidate, Chooser
from diffcore.memory.fitting.layouts import laid_out
from diffcore.memory.fitting.timing import Layout
from diffcore.memory.fitting.work import work_of

LONGEST = 4096
"""Pixels of the longest side that is tried."""
GPUS = 4096
"""The most that are tried."""
T = TypeVar("T")


def first(among: Sequence[T], holds: Callable[[T], bool]) -> T | None:
    """The first of which ``holds`` is true, as of all behind it; None where it is of none."""
    low, high = 0, len(among)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(among[middle]) else (middle + 1, high)
    return among[low] if low < len(among) else None


def by_size() -> list[Card]:
    """The whole cards of the table, by the memory that CUDA says they have, the slower of two alike first."""
    return sorted(CARDS.values(), key=lambda card: (card.mib, card.half, card.name))


def on(chooser: Chooser, card: Card) -> Chooser:
    """The same network on another card, with what was measured outside torch's allocator there."""
    planner = chooser.planner
    planner.outside = of_card(card)  # traces are the same
    return replace(chooser, clock=replace(chooser.clock, card=card))


def smallest_card(chooser: Chooser, layout: Layout) -> Chooser:
    """The smallest card on which a setting fits, one a rank. InputError where none of the table is enough."""
    wanted = chooser.space.held.get("precision") == "bf16"
    cards = [card for card in by_size() if card.bf16 or not wanted]
    card = next((card for card in cards if on(chooser, card).fits_at_all(layout)), None)
    if card is None:
        raise InputError(f"fits no card that is known here, on {layout.world} of it")
    return on(chooser, card)


def fewest_gpus(chooser: Chooser, per_node: int, network: float) -> Layout:
    """The fewest GPUs that the global batch divides among and a setting fits. InputError where none do."""
    size = chooser.space.config.batch.size
    layouts = [
        layout
        for world in range(1, min(size, GPUS) + 1)
        if (layout := laid_out(world, per_node, network)) is not None and chooser.space.micros(layout)
    ]
    # One by one: a GPU more can take more, by the buckets that one alone does not need.
    found = next((layout for layout in layouts if chooser.fits_at_all(layout)), None)
    if found is None:
        raise InputError(
            f"fits no number of {chooser.clock.card.name} that batch.size {size} divides among, up to "
            f"{layouts[-1].world if layouts else 0}"
        )
    return found


def largest_batch(chooser: Chooser, layout: Layout) -> Candidate:
    """The largest global batch without accumulation, up to ``advise.MOST`` images a rank. InputError where
    not even one fits."""
    best: Candidate | None = None
    for setting in chooser.space.thrifty(chooser.clock.card, layout):
        more = best.micro + 1 if best else 1
        if chooser.plan(setting, layout, more, more * layout.world).smi > chooser.room:
            continue
        config = chooser.space.with_choice(setting, more, more * layout.world)
        micro = chooser.planner.largest(config, layout.world, chooser.room)
        plan = chooser.plan(setting, layout, micro, micro * layout.world)
        times = chooser.clock.times(setting, layout, micro, 1)
        best = Candidate(setting, layout, micro, 1, plan, times)
        if micro == MOST:
            break
    if best is None:
        raise InputError(f"not even one image a rank fits {chooser.clock.card.name}")
    return best


def longest_side(chooser: Chooser, layout: Layout) -> tuple[int, Chooser]:
    """The longest side of square images that fit, a multiple of what the network's ladder divides, up to
    LONGEST pixels; and the network on these. InputError where the shortest does not fit."""
    divisor = chooser.space.config.model.divisor
    sides = range(divisor, LONGEST + 1, divisor)
    choosers: dict[int, Chooser] = {}

    def does_not_fit(side: int) -> bool:
        choosers[side] = of_side(chooser, side)
        return not choosers[side].fits_at_all(layout)

    # Doubled first: a trace of the largest sides is for nothing where a small one is too large already.
    high = divisor
    while high < sides[-1] and not does_not_fit(high):
        high = min(2 * high, sides[-1] // divisor * divisor)
    within = [side for side in sides if side <= high]
    too_long = first(within, does_not_fit)
    longest = within[-1] if too_long is None else too_long - divisor
    if longest < divisor:
        card = chooser.clock.card.name
        raise InputError(f"images of {divisor} x {divisor} pixels, the smallest, do not fit {card}")
    found = choosers[longest]
    return longest, replace(
        found, clock=replace(found.clock, work=work_of(found.planner, found.space.config))
    )


def of_side(chooser: Chooser, side: int) -> Chooser:
    """The same network on images of ``side`` pixels, without stages on smaller ones."""
    config = configure.replace(chooser.space.config, "train", {"stages": ()})
    data = replace(chooser.planner.data, size=side, assumed="")
    planner = Planner(config, data, chooser.planner.device, chooser.planner.outside)
    return replace(chooser, planner=planner, space=replace(chooser.space, config=config))
