"""How many GPUs in which nodes ``fit`` is asked of. Imports no torch."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

from diffbase.cli import InputError
from diffbase.machine.cards import CARDS, Card
from diffcore.config.tree import Config
from diffcore.memory.fitting.timing import NETWORK, Layout


def any_card() -> Card:
    """One to begin with, where the card is looked for."""
    return next(iter(CARDS.values()))


def asked(given: Namespace, config: Config) -> list[Layout]:
    """Of ``--nodes`` and ``--gpus-per-node``, or ``--gpus``: of a range those by which the
    batch divides, each twice the one before, and the last.

    InputError where the global batch does not divide among any of them, or nodes would not be whole.
    """
    network, per_node = NETWORK if given.network is None else given.network, given.gpus_per_node
    if not given.nodes:
        if given.find == "gpus":
            return [Layout(1, per_node, network)]
        layout = laid_out(given.world, per_node, network)
        if layout is None:
            raise InputError(f"--gpus {given.world}: not whole nodes of {per_node}; give --gpus-per-node")
        sizes = [layout]
    else:
        counts = range(given.nodes[0], given.nodes[1] + 1)
        dividing = [count for count in counts if config.batch.size % (count * per_node) == 0]
        sizes = [Layout(count, per_node, network) for count in thinned(dividing or doubling(*given.nodes))]
    able = [layout for layout in sizes if config.batch.size % layout.world == 0]
    if not able and given.find != "batch":
        config.batch.model_copy(update={"micro": None}).split(sizes[-1].world)  # says what would do
    return able or sizes


def laid_out(world: int, per_node: int, network: float) -> Layout | None:
    """``world`` GPUs in as few nodes as can be, all of them whole; None where the last one would not be."""
    if world <= per_node:
        return Layout(1, world, network)
    return None if world % per_node else Layout(world // per_node, per_node, network)


def thinned(counts: Sequence[int]) -> list[int]:
    """Of rising numbers the first, each that is at least twice the one before, and the last."""
    found = list(counts[:1])
    for count in counts[1:]:
        if count >= 2 * found[-1]:
            found.append(count)
    return found if found[-1] == counts[-1] else [*found, counts[-1]]


def doubling(low: int, high: int) -> list[int]:
    """``low``, twice that, and so on, and ``high``."""
    found = [low]
    while 2 * found[-1] <= high:
        found.append(2 * found[-1])
    return found if found[-1] == high else [*found, high]
