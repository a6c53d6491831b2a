"""What the system says a process holds: NVML (nvidia-smi's source) on a GPU, the resident set without one.

The only file that knows pynvml.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase import malloc as heap
from diffcore.memory.calibration import ASSUMED, Calibration, calibration

if TYPE_CHECKING:
    import torch

    from diffcore.memory.counted import Counted


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
    """Of it the driver and the firmware, where ``used`` has them in it."""
    complete: bool = False
    """Whether the figures are NVML's, so that the sum can be closed against them."""
    ranks: int = 1
    outside: Calibration = ASSUMED
    kept: int = 0
    """Of ``used`` freed and kept by malloc, on a CPU."""
    notes: tuple[str, ...] = field(default=())

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
            if self.ranks > 1:
                rows.append(("NCCL", outside.nccl, outside.source_nccl))
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
    except Exception as error:  # a report must not end a run: no driver, no rights, AMD, ...
        why = f"no NVML ({type(error).__name__}: {error}): the sum cannot be closed"
        return Usage("cuda", reserved, "torch's allocator, reserved", notes=(why,), ranks=ranks)
    notes = []
    try:
        others, own = _processes(pynvml, handle)
    except Exception as error:  # the device's own figure is known all the same
        others, own = None, None
        notes.append(f"NVML does not list the processes ({type(error).__name__}: {error})")
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
        _drivers_share(memory),
        True,
        ranks,
        calibration(name, torch.version.cuda),
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


def _drivers_share(memory: Any) -> int:
    """Of ``memory.used`` what the driver keeps. Newer drivers count it beside (total = used + free +
    reserved), older ones within."""
    reserved = int(getattr(memory, "reserved", 0))
    beside = reserved and memory.total - memory.free - memory.used >= reserved // 2
    return 0 if beside else reserved


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


def shown_devices(count: int) -> list[str]:
    """Of ``count`` devices those that CUDA_VISIBLE_DEVICES shows: indices, UUIDs of GPUs, MIG instances."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return [str(number) for number in range(count)]
    shown = [name.strip() for name in visible.split(",")]
    # CUDA ignores what follows the first invalid entry, -1 by custom.
    return shown[: shown.index("-1")] if "-1" in shown else [name for name in shown if name]


def handle_of(pynvml: Any, name: str) -> Any:
    """NVML's handle of an entry of CUDA_VISIBLE_DEVICES. Makes no CUDA context, as asking torch would."""
    return (
        pynvml.nvmlDeviceGetHandleByIndex(int(name))
        if name.isdigit()
        else pynvml.nvmlDeviceGetHandleByUUID(name)
    )


def count_gpus() -> int:
    """GPUs that NVML sees and CUDA_VISIBLE_DEVICES shows; 0 without a driver. Needs no torch."""
    try:
        import pynvml

        pynvml.nvmlInit()
        return len(shown_devices(int(pynvml.nvmlDeviceGetCount())))
    except Exception:  # no driver, no rights: pynvml has its own types for each
        return 0


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def device_problems(wanted: int) -> list[str]:
    """What is wrong with the GPUs shown to this process: fewer than ``wanted``, or uncorrected errors."""
    try:
        import pynvml

        pynvml.nvmlInit()
        names = shown_devices(int(pynvml.nvmlDeviceGetCount()))
    except Exception as error:  # no driver, no rights: pynvml has its own types for each
        return [f"no GPU can be seen ({type(error).__name__}: {error})"]
    problems = [] if len(names) >= wanted else [f"{len(names)} GPUs, {wanted} wanted"]
    for name in names:
        try:
            handle = handle_of(pynvml, name)
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
