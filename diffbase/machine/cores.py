"""Which of a machine's cores each of several processes gets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def neighbours(cores: Iterable[int], cpus: Path = CPUS) -> list[int]:
    """``cores`` with those next to each other that share a socket, then a physical core (hyperthreads)."""
    return sorted(cores, key=lambda core: (*_place(cpus / f"cpu{core}" / "topology", core), core))


def share(cores: Sequence[int], part: int, parts: int) -> list[int]:
    """The ``part``-th of ``parts`` contiguous shares, none of which is empty if there are cores enough."""
    return list(cores[part * len(cores) // parts : (part + 1) * len(cores) // parts])


def fair(cores: Iterable[int], all_here: Iterable[Collection[int]]) -> int:
    """How many threads a process that may run on ``cores`` has for itself, 1 at least.

    ``all_here``: the cores of every such process of the machine, this one's among them. Each core counts as
    its part for each of those that may use it, and whole where a launcher bound them to cores of their own.
    """
    users = Counter(core for own in all_here for core in own)
    return max(1, int(sum(Fraction(1, users[core]) for core in cores)))


def _place(topology: Path, core: int) -> tuple[int, int]:
    try:
        socket, physical = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):  # a kernel that does not say
        return 0, core
    return socket, physical
