"""What the system says a process holds: NVML (nvidia-smi's source) on a GPU, the resident set without one."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from diffbase.machine import malloc, nvml
from diffcore.memory.calibration import ASSUMED, Calibration, calibration
from diffcore.memory.measure.counted import Counted

CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True)
class Room:
    """The most that there can be."""

    bytes: int
    source: str


@dataclass(frozen=True)
class Usage:
    """Memory of one device, or of this process where there is none, in bytes."""

    device: str
    used: int
    """What nvidia-smi shows for the device (or the MIG instance); without NVML what is known instead."""
    source: str
    others: int | None = None
    """Of it other processes; None where NVML does not say."""
    own: int | None = None
    """Of it this process, where NVML knows it."""
    driver: int = 0
    """Of it the driver and the firmware, where ``used`` has them in it."""
    complete: bool = False
    """Whether the figures are NVML's, so that the sum can be closed against them."""
    ranks: int = 0
    """Of the process group; 0: there is none."""
    outside: Calibration = ASSUMED
    kept: int = 0
    """Of ``used`` freed and kept by malloc, on a CPU."""
    notes: tuple[str, ...] = field(default=())
    room: Room | None = None
    """Of the device, or of this machine where there is none."""

    def rows(self, peak: int, now: int, counted: Counted | None) -> list[dict[str, Any]]:
        """What stands beside the categories (``peak`` bytes of them, ``now`` at the moment of asking) so that
        the sum is ``used``. ``counted``: by torch's allocator at that peak, on a GPU. The residual is what no
        row explains: printed, positive or negative."""
        rows: list[tuple[str, int, str]] = []
        if counted is None:  # no caching allocator of torch's, but malloc keeps some of what is freed
            rows.append(("freed since the peak", now - peak, "difference"))
            rows.append(("kept by malloc", self.kept, "mallinfo2"))
            residual = self.used - now - self.kept
            rows.append(("residual: interpreter, libraries, data", residual, "difference"))
            return [{"name": n, "bytes": b, "source": s} for n, b, s in rows]
        rows.append(("not followed: workspaces of kernels", counted.requested - peak, "torch's count"))
        rows.append(("allocator: rounding", counted.allocated - counted.requested, "torch's count"))
        rows.append(("allocator: fragments, cache", counted.reserved - counted.allocated, "torch's count"))
        outside, explained = self.outside, counted.reserved
        if self.complete:
            rows.append(("other processes", self.others or 0, "NVML"))
            rows.append(("driver", self.driver, "NVML"))
            rows.append(("CUDA context", outside.context, outside.source))
            explained += (self.others or 0) + self.driver + outside.context
            if self.ranks:
                rows.append(("NCCL", outside.nccl, outside.source_nccl(self.ranks)))
                explained += outside.nccl
        rows.append(("residual", self.used - explained, "difference"))
        return [{"name": n, "bytes": b, "source": s} for n, b, s in rows]


def usage(device: torch.device) -> Usage:
    """The memory of ``device`` as the system sees it. Never raises: without NVML a note says why."""
    if device.type != "cuda":
        return Usage("cpu", _resident(), "RSS (/proc/self/statm)", kept=malloc.kept(), room=host())

    reserved = torch.cuda.memory_reserved(device)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 0
    properties = torch.cuda.get_device_properties(device)
    try:
        found = nvml.device_memory(str(properties.uuid))
    except Exception as error:  # a report must not end a run: no driver, no rights, AMD, ...
        why = f"no NVML ({type(error).__name__}: {error}): the sum cannot be closed"
        total = int(getattr(properties, "total_memory", 0))
        room = Room(total, "CUDA, the whole device") if total else None
        return Usage("cuda", reserved, "torch's allocator, reserved", notes=(why,), ranks=ranks, room=room)
    return Usage(
        found.name,
        found.used,
        "NVML, MIG instance" if found.instance else "NVML, whole device",
        found.others,
        found.own,
        found.driver,
        True,
        ranks,
        calibration(found.name, torch.version.cuda),
        notes=found.notes,
        room=Room(found.total, "NVML, MIG instance" if found.instance else "NVML, whole device")
        if found.total
        else None,
    )


def host() -> Room:
    """The machine's memory, or the cgroup's limit where that is less."""
    room = Room(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "the machine's memory")
    for file in CGROUPS:
        with contextlib.suppress(OSError, ValueError):  # "max", or no such file
            if 0 < (limit := int(Path(file).read_text())) < room.bytes:
                room = Room(limit, "the cgroup's limit")
    return room


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
