"""What the system says a process holds: NVML (nvidia-smi's source) on a GPU, the resident set without one.

The only file that knows pynvml.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffcore import heap
from diffcore.memory.calibration import calibration

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Usage:
    """Memory of one device, or of this process where there is none, in bytes."""

    device: str
    used: int
    """What nvidia-smi shows for the device (or the MIG instance); without NVML what is known instead."""
    source: str
    others: int | None = None
    """Of it other processes; None where that cannot be told."""
    own: int | None = None
    """Of it this process, where NVML knows it."""
    driver: int = 0
    """Kept back by the driver and the firmware."""
    complete: bool = False
    """Whether the figures are NVML's, so that the sum can be closed against them."""
    ranks: int = 1
    kept: int = 0
    """Of ``used`` freed and kept by malloc, on a CPU."""
    notes: tuple[str, ...] = field(default=())

    def rows(self, peak: int, reserved: int | None, now: int) -> list[dict[str, Any]]:
        """What stands beside the categories (``peak`` bytes of them, ``now`` at the moment of asking) so that
        the sum is ``used``. The residual is whatever no row explains: printed, positive or negative."""
        rows: list[tuple[str, int, str]] = []
        if reserved is None:  # no caching allocator of torch's, but malloc keeps some of what is freed
            rows.append(("freed since the peak", now - peak, "difference"))
            rows.append(("kept by malloc", self.kept, "mallinfo2"))
            residual = self.used - now - self.kept
            rows.append(("residual: interpreter, libraries, data", residual, "difference"))
            return [{"name": n, "bytes": b, "source": s} for n, b, s in rows]
        rows.append(("allocator: rounding, fragments, cache", reserved - peak, "torch"))
        outside = calibration(self.device)
        how = outside.source
        explained = reserved
        if self.complete:
            rows.append(("other processes", self.others or 0, "NVML"))
            rows.append(("driver", self.driver, "NVML"))
            rows.append(("CUDA context", outside.context, how))
            explained += (self.others or 0) + self.driver + outside.context
            if self.ranks > 1:
                rows.append(("NCCL", outside.nccl, how))
                explained += outside.nccl
        rows.append(("residual", self.used - explained, "difference"))
        return [{"name": n, "bytes": b, "source": s} for n, b, s in rows]


def usage(device: torch.device) -> Usage:
    """The memory of ``device`` as the system sees it. Never raises: without NVML a note says why."""
    if device.type != "cuda":
        return Usage("cpu", _resident(), "RSS (/proc/self/statm)", kept=heap.kept())

    import torch

    reserved = torch.cuda.memory_reserved(device)
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    try:
        import pynvml

        pynvml.nvmlInit()
        properties = torch.cuda.get_device_properties(device)
        handle, instance = _handle(pynvml, str(properties.uuid))
        name = pynvml.nvmlDeviceGetName(handle)
        name = name.decode() if isinstance(name, bytes) else str(name)
        memory = _memory(pynvml, handle)
        others, own = _processes(pynvml, handle)
    except Exception as error:  # a report must not end a run: no driver, no rights, AMD, ...
        why = f"no NVML ({type(error).__name__}: {error}): the sum cannot be closed"
        return Usage("cuda", reserved, "torch's allocator, reserved", notes=(why,), ranks=ranks)
    notes = []
    if own is None:
        # In a container NVML knows other process numbers than ours; under MIG often none at all.
        notes.append("NVML does not know this process by its number: other processes cannot be told apart")
        others = 0 if others else others
    if instance:
        notes.append("a MIG instance: figures are the instance's, not the whole card's")
    return Usage(
        name,
        int(memory.used),
        "NVML, MIG instance" if instance else "NVML, whole device",
        others,
        own,
        int(getattr(memory, "reserved", 0)),
        True,
        ranks,
        notes=tuple(notes),
    )


def _handle(pynvml: Any, uuid: str) -> tuple[Any, bool]:
    """The device's handle and whether it is a MIG instance, whose own handle must be asked."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    if shown.startswith("MIG-"):
        return pynvml.nvmlDeviceGetHandleByUUID(shown.split(",")[0].strip()), True
    uuid = uuid.removeprefix("GPU-")
    try:
        return pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}"), False
    except pynvml.NVMLError:
        return pynvml.nvmlDeviceGetHandleByUUID(f"MIG-{uuid.removeprefix('MIG-')}"), True


def _memory(pynvml: Any, handle: Any) -> Any:
    """Version 2 tells what the driver keeps apart from what is used; older drivers have only the first."""
    try:
        return pynvml.nvmlDeviceGetMemoryInfo(handle, version=pynvml.nvmlMemory_v2)
    except (pynvml.NVMLError, AttributeError, TypeError):
        return pynvml.nvmlDeviceGetMemoryInfo(handle)


def _processes(pynvml: Any, handle: Any) -> tuple[int | None, int | None]:
    """Bytes of the others and of this process; None where NVML does not say."""
    processes = list(pynvml.nvmlDeviceGetComputeRunningProcesses(handle))
    with contextlib.suppress(pynvml.NVMLError):
        processes += pynvml.nvmlDeviceGetGraphicsRunningProcesses(handle)
    sizes = {p.pid: p.usedGpuMemory for p in processes}
    if any(size is None for size in sizes.values()):
        return None, None
    own = sizes.pop(os.getpid(), None)
    return sum(sizes.values()), own


def count_gpus() -> int:
    """GPUs that NVML sees and CUDA_VISIBLE_DEVICES shows; 0 without a driver. Needs no torch."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except Exception:  # no driver, no rights: pynvml has its own types for each
        return 0
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return count
    shown = [device.strip() for device in visible.split(",")]
    # CUDA ignores what follows the first invalid entry, -1 by custom.
    return len(shown[: shown.index("-1")] if "-1" in shown else [device for device in shown if device])


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_problems(wanted: int) -> list[str]:
    """What is wrong with the GPUs shown to this process: fewer than ``wanted``, or uncorrected errors."""
    try:
        import pynvml

        pynvml.nvmlInit()
        shown = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = shown.split(",") if shown else [str(i) for i in range(int(pynvml.nvmlDeviceGetCount()))]
    except Exception as error:  # no driver, no rights: pynvml has its own types for each
        return [f"no GPU can be seen ({type(error).__name__}: {error})"]
    problems = [] if len(names) >= wanted else [f"{len(names)} GPUs, {wanted} wanted"]
    for name in names:
        by_name = pynvml.nvmlDeviceGetHandleByIndex if name.isdigit() else pynvml.nvmlDeviceGetHandleByUUID
        try:
            handle = by_name(int(name) if name.isdigit() else name)
            kind, since_start = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            errors = int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since_start))
        except pynvml.NVMLError_NotSupported:  # a device without ECC
            continue
        except Exception as error:
            problems.append(f"GPU {name}: {type(error).__name__}: {error}")
            continue
        if errors:
            problems.append(f"GPU {name}: {errors} uncorrected memory errors since its start")
    return problems
