"""Which neighbours of a ring are timed together."""

from __future__ import annotations


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """The pairs (i, i + 1) of a ring of at least three nodes, in rounds in which a node comes once.

    An edge colouring: two rounds for an even ring, three for an odd one, whatever its length.
    """
    ring = [(i, (i + 1) % nodes) for i in range(nodes)]
    even = nodes - nodes % 2
    found = [ring[0:even:2], ring[1:even:2], ring[even:]]
    return [pairs for pairs in found if pairs]
