"""What waits in the host's memory until it is needed: ``engine.offload`` by name. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

HOST = {"device": "cpu", "pin_memory": True}


@dataclass(frozen=True)
class Offload:
    """One row of the table."""

    stages: tuple[int, ...]
    """ZeRO stages that allow it."""
    zero: Mapping[str, Any]
    """What DeepSpeed's ``zero_optimization`` says of it."""


OFFLOADS: dict[str, Offload] = {
    "none": Offload((0, 1, 2, 3), {}),
    "optimizer": Offload((1, 2, 3), {"offload_optimizer": HOST}),
    "parameters": Offload((3,), {"offload_optimizer": HOST, "offload_param": HOST}),
}

if TYPE_CHECKING:
    OffloadName = str
else:
    OffloadName = Literal[tuple(OFFLOADS)]
