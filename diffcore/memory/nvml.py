"""What the system says a process holds: NVML (nvidia-smi's source) on a GPU, the resident set without one.

The only file that knows pynvml.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Total:
    """Bytes and where the figure is from."""

    bytes: int
    source: str


def process_total(device: torch.device) -> Total:
    """The process's memory on ``device``. Never raises: without NVML the source says why."""
    if device.type != "cuda":
        return Total(_resident(), "RSS (/proc/self/statm)")

    import torch

    try:
        import pynvml

        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
            if process.pid == os.getpid() and process.usedGpuMemory is not None:
                return Total(int(process.usedGpuMemory), "NVML, this process")
        # In a container NVML knows other process numbers than ours.
        return Total(int(pynvml.nvmlDeviceGetMemoryInfo(handle).used), "NVML, whole device")
    except Exception as error:  # a report must not end a run: no driver, no rights, AMD, ...
        reserved = torch.cuda.memory_reserved(device)
        return Total(reserved, f"torch's allocator, reserved (no NVML: {type(error).__name__}: {error})")


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
    """What is wrong with this node's GPUs: fewer than ``wanted``, or errors that ECC could not mend."""
    try:
        import pynvml

        pynvml.nvmlInit()
        count = int(pynvml.nvmlDeviceGetCount())
    except Exception as error:  # no driver, no rights: pynvml has its own types for each
        return [f"no GPU can be seen ({type(error).__name__}: {error})"]
    problems = [] if count >= wanted else [f"{count} GPUs, {wanted} wanted"]
    for i in range(count):
        try:
            handle = pynvml.nvmlDeviceGetHandleByIndex(i)
            kind, since_boot = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            errors = int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since_boot))
        except pynvml.NVMLError_NotSupported:  # a device without ECC
            continue
        except Exception as error:
            problems.append(f"GPU {i}: {type(error).__name__}: {error}")
            continue
        if errors:
            problems.append(f"GPU {i}: {errors} uncorrected memory errors since its start")
    return problems
