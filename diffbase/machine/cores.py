"""Which of a machine's cores each of several processes gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

CPUS = Path("/sys/devices/system/cpu")


def neighbours(cores: Iterable[int], cpus: Path = CPUS) -> list[int]:
    """``cores`` with those next to each other that share a socket, then a physical core (hyperthreads)."""
    return sorted(cores, key=lambda core: (*_place(cpus / f"cpu{core}" / "topology", core), core))


def share(cores: Sequence[int], part: int, parts: int) -> list[int]:
    """The ``part``-th of ``parts`` contiguous shares, none of which is empty if there are cores enough."""
    return list(cores[part * len(cores) // parts : (part + 1) * len(cores) // parts])


def _place(topology: Path, core: int) -> tuple[int, int]:
    try:
        socket, physical = (int((topology / name).read_text()) for name in ("physical_package_id", "core_id"))
    except (OSError, ValueError):  # a kernel that does not say
        return 0, core
    return socket, physical
