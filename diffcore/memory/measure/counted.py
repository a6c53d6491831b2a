"""What torch's CUDA allocator counts itself, beside the tensors that were followed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Counted:
    """Bytes of one device."""

    requested: int
    """What tensors and workspaces asked for."""
    allocated: int
    """The blocks that they got: rounded up."""
    reserved: int
    """The segments that the blocks are cut from."""

    @classmethod
    def of(cls, device: torch.device, which: str = "current") -> Counted | None:
        """``which``: "current", or "peak" since the last reset; None without a GPU."""
        if device.type != "cuda":
            return None
        stats = torch.cuda.memory_stats(device)
        names = ("requested", "allocated", "reserved")
        return cls(*(int(stats.get(f"{name}_bytes.all.{which}", 0)) for name in names))


class Counts:
    """The allocator's counts at the moments of a step. Does nothing without a GPU."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.moments: dict[str, Counted] = {}
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.reset_peak_memory_stats(device)

    def mark(self, phase: str) -> None:
        """``forward``, ``backward`` or ``step`` has ended; named as plan.account names the moments."""
        now, peak = Counted.of(self.device), Counted.of(self.device, "peak")
        if now is None or peak is None:
            return
        self.moments["after forward" if phase == "forward" else "after step"] = now
        name = f"{phase} peak"
        before = self.moments.get(name, peak)
        both = zip(asdict(before).values(), asdict(peak).values(), strict=True)
        self.moments[name] = Counted(*(max(pair) for pair in both))
        torch.cuda.reset_peak_memory_stats(self.device)


def unfollowed(snapshot: Sequence[dict[str, Any]], followed: Iterable[int]) -> tuple[int, int]:
    """(bytes, number) of blocks in use at whose address no storage of ``followed`` begins: the workspaces of
    libraries, tensors that were not seen. ``snapshot``: of torch.cuda.memory_snapshot().
    """
    known, size, count = set(followed), 0, 0
    for segment in snapshot:
        address = segment["address"]
        for block in segment["blocks"]:
            if block["state"].startswith("active") and address not in known:
                size += block["size"]
                count += 1
            address += block["size"]
    return size, count
