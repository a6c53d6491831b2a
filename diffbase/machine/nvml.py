"""GPUs as NVML (nvidia-smi's source) sees them: how many, whether they are well, and what holds their memory.

The only file that knows pynvml. Needs no torch, and makes no CUDA context.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LOST = ("NVMLError_GpuIsLost", "NVMLError_ResetRequired", "NVMLError_GpuNotFound")
"""What NVML says of a GPU that nothing can be computed on."""
SILENT = ("NVMLError_LibraryNotFound", "NVMLError_NoPermission", "NVMLError_FunctionNotFound")
"""What it says where CUDA may work all the same, as in a container without NVML."""
DEVICES = Path("/dev")


@dataclass(frozen=True)
class DeviceMemory:
    """Memory of one device, or of a MIG instance, in bytes."""

    name: str
    used: int
    others: int | None
    """Of it other processes; None where NVML does not say."""
    own: int | None
    """Of it this process; None where NVML does not know it."""
    driver: int
    """Of it the driver and the firmware, where ``used`` has them in it."""
    instance: bool
    """Whether it is a MIG instance."""
    notes: tuple[str, ...]
    """What is unknown, and why."""
    total: int = 0
    """What the device has in all; 0 where NVML does not say."""


class DriverError(RuntimeError):
    """There is an NVIDIA driver, and it does not answer."""


@dataclass(frozen=True)
class Gpu:
    """A GPU, or a MIG instance, that CUDA_VISIBLE_DEVICES shows."""

    name: str
    memory: int
    """Bytes of all its memory."""
    divided: bool
    """Whether it is in MIG mode: a process sees one instance of it."""


@dataclass(frozen=True)
class Survey:
    """What NVML says of this machine."""

    driver: str
    """Its version."""
    cuda: tuple[int, int]
    """The newest CUDA that the driver knows."""
    installed: int
    """GPUs, shown or not."""
    gpus: tuple[Gpu, ...]
    """Those that are shown and answer; what the others have, ``device_health`` says."""


def survey() -> Survey | None:
    """None where there is no NVIDIA driver. Raises DriverError where there is one that does not answer."""
    import pynvml

    try:
        pynvml.nvmlInit()
        driver, cuda = pynvml.nvmlSystemGetDriverVersion(), int(pynvml.nvmlSystemGetCudaDriverVersion())
        installed = int(pynvml.nvmlDeviceGetCount())
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return None
    except pynvml.NVMLError as error:
        raise DriverError(str(error)) from error
    gpus = []
    for name in shown_devices(installed):
        with contextlib.suppress(pynvml.NVMLError):
            gpus.append(_gpu(pynvml, handle_of(pynvml, name)))
    return Survey(_text(driver), (cuda // 1000, cuda % 1000 // 10), installed, tuple(gpus))


def _gpu(pynvml: Any, handle: Any) -> Gpu:
    divided = False
    with contextlib.suppress(pynvml.NVMLError):  # a device that cannot be divided
        divided = bool(pynvml.nvmlDeviceGetMigMode(handle)[0])
    return Gpu(_text(pynvml.nvmlDeviceGetName(handle)), int(_memory(pynvml, handle).total), divided)


def _text(value: str | bytes) -> str:
    """Older versions of pynvml answer in bytes."""
    return value.decode() if isinstance(value, bytes) else value


def first_shown() -> tuple[str, int]:
    """Name and used bytes of the first GPU, or MIG instance, that CUDA_VISIBLE_DEVICES shows.

    Makes no CUDA context. Raises what pynvml raises.
    """
    import pynvml

    pynvml.nvmlInit()
    handle = handle_of(pynvml, shown_devices(int(pynvml.nvmlDeviceGetCount()))[0])
    return _text(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)


def driver() -> str:
    """The driver's version. Raises what pynvml raises."""
    import pynvml

    pynvml.nvmlInit()
    return _text(pynvml.nvmlSystemGetDriverVersion())


def device_memory(uuid: str) -> DeviceMemory:
    """Of the device with this UUID of torch's. Raises what pynvml raises: no driver, no rights, no device."""
    import pynvml

    pynvml.nvmlInit()
    handle, instance = _handle(pynvml, uuid)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    memory = _memory(pynvml, handle)
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
    used, driver = int(memory.used), _drivers_share(memory)
    return DeviceMemory(name, used, others, own, driver, instance, tuple(notes), int(memory.total))


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
    """Version 2 counts what the driver keeps apart from what is used; older drivers have only the first."""
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


@dataclass(frozen=True)
class Health:
    """``problems``: what keeps a node from training. ``notes``: what could not be looked at."""

    problems: tuple[str, ...]
    notes: tuple[str, ...] = ()


def device_health(wanted: int) -> Health:
    """Of the GPUs shown to this process: fewer than ``wanted``, lost ones, memory errors beyond ECC.

    A GPU counts once, by its UUID, however often and by whatever name it is shown. What NVML only does not
    tell, as where counters may not be read, is a note.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        names = shown_devices(int(pynvml.nvmlDeviceGetCount()))
    except Exception as error:  # no driver, no rights: pynvml has its own types for each
        return _without_nvml(wanted, error)
    problems, notes, found = list[str](), list[str](), set[str]()
    for name in names:
        try:
            handle = handle_of(pynvml, name)
        except Exception as error:
            problems.append(f"GPU {name}: {type(error).__name__}: {error}")
            found.add(name)
            continue
        unique = _uuid(pynvml, handle, name)
        if unique in found:
            continue
        found.add(unique)
        try:
            kind, since_start = pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            errors = int(pynvml.nvmlDeviceGetTotalEccErrors(handle, kind, since_start))
        except Exception as error:
            what = type(error).__name__
            if what in LOST:
                problems.append(f"GPU {name}: {what}: {error}")
            elif what != "NVMLError_NotSupported":  # a device without ECC
                notes.append(f"GPU {name}: its memory errors are not known ({what}: {error})")
            continue
        if errors:
            problems.append(f"GPU {name}: {errors} uncorrected memory errors since its start")
    if len(found) < wanted:
        problems.insert(0, f"{len(found)} GPUs{_shown_as()}, {wanted} wanted")
    return Health(tuple(problems), tuple(notes))


def _without_nvml(wanted: int, error: Exception) -> Health:
    """Where NVML says nothing, the driver's device files are counted."""
    line = f"{type(error).__name__}: {error}"
    files = [path.name for path in DEVICES.glob("nvidia[0-9]*")]
    if type(error).__name__ in SILENT and files and len(set(shown_devices(len(files)))) >= wanted:
        return Health((), (f"NVML says nothing of the GPUs ({line})",))
    return Health((f"no GPU can be seen ({line})",))


def _uuid(pynvml: Any, handle: Any, name: str) -> str:
    try:
        return _text(pynvml.nvmlDeviceGetUUID(handle))
    except Exception:
        return name


def _shown_as() -> str:
    """What hides the others, where that is known."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if shown is None else f" (CUDA_VISIBLE_DEVICES={shown})"
