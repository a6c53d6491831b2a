"""GPUs as NVML and as torch see them, and the backend that ranks talk through."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from diffbase.machine.nvml import DriverError, Survey, device_health, survey
from launch.doctor.finding import Finding, bad, ok, warn

BUS = Path("/sys/bus/pci/devices")
NVIDIA, DISPLAY = "0x10de", "0x03"
"""Vendor and kind of device on the PCI bus."""


def gpus() -> Iterator[Finding]:
    """What NVML, which is nvidia-smi's source, says: names, memory, driver, memory errors. Needs no torch."""
    name = "GPUs"
    try:
        found = survey()
    except DriverError as error:
        yield bad(
            name, f"the NVIDIA driver does not answer: {error}", "nvidia-smi; load the driver anew, or reboot"
        )
        return
    if found is None:
        if _on_the_bus():
            text = "an NVIDIA GPU is on the bus, but no driver is here"
            yield warn(name, text, "install the NVIDIA driver; in a container: --gpus all")
        else:
            yield ok(name, "none: no NVIDIA driver here; training runs on the CPU")
        return
    driver = f"driver {found.driver} (CUDA {_dotted(found.cuda)})"
    kinds = [f"{gpu.name}, {gpu.memory / 2**30:.0f} GiB{', MIG' * gpu.divided}" for gpu in found.gpus]
    for kind in dict.fromkeys(kinds):
        yield ok(name, f"{kinds.count(kind)} x {kind}; {driver}")
    health = device_health(0)
    for problem in health.problems:
        yield bad(name, problem, "nvidia-smi -q; leave that GPU out (CUDA_VISIBLE_DEVICES) or reset it")
    for note in health.notes:
        yield warn(name, note, "nvidia-smi -q -d ECC; training does not need it")
    if not kinds and not health.problems:
        text = f"{found.installed} installed, none shown to this process; {driver}"
        yield warn(name, text, "CUDA_VISIBLE_DEVICES hides them; in a Slurm job ask for GPUs")


def _on_the_bus() -> bool:
    def is_gpu(device: Path) -> bool:
        try:
            vendor, kind = ((device / name).read_text(encoding="ascii") for name in ("vendor", "class"))
        except OSError:
            return False
        return vendor.startswith(NVIDIA) and kind.startswith(DISPLAY)

    return BUS.is_dir() and any(map(is_gpu, BUS.iterdir()))


def torch_and_gpus() -> Iterator[Finding]:
    """torch's build, whether it sees the GPUs that NVML sees, and its communication backend."""
    import torch

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        seen = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield _backend(torch, seen)
    cuda, rocm = torch.version.cuda, torch.version.hip
    build = (
        f"{torch.__version__}, built for {f'CUDA {cuda}' if cuda else f'ROCm {rocm}' if rocm else 'the CPU'}"
    )
    try:
        found = survey()
    except DriverError:  # told with the GPUs
        found = None
    shown = len(found.gpus) if found else 0
    if found is None or seen >= shown or (seen and any(gpu.divided for gpu in found.gpus)):
        yield ok("torch build", f"{build}; sees {seen or 'no'} GPU{'s' * (seen != 1)}")
        return
    reason, todo = _unseen(cuda, found)
    # torch's own warning is longer than what is known to be the reason, and holds links.
    why = reason or " ".join(str(warning.message) for warning in said)
    yield bad("torch build", f"{build}; sees {seen} of {shown} GPUs{f': {why}' if why else ''}", todo)


def _unseen(cuda: str | None, found: Survey) -> tuple[str, str]:
    """Why torch does not see a GPU, where that is known, and what to do."""
    if cuda is None:
        return "this build knows no CUDA", "install torch for CUDA: https://pytorch.org/get-started/locally"
    if found.cuda[0] < int(cuda.split(".")[0]):
        return (
            f"driver {found.driver} is too old, it knows CUDA up to {_dotted(found.cuda)}",
            f"a driver for CUDA {cuda}, or a torch that is built for CUDA {found.cuda[0]}",
        )
    return "", "python -c 'import torch; torch.cuda.init()' says why; nvidia-smi"


def _backend(torch: Any, seen: int) -> Finding:
    name = "communication"
    todo = "install torch as built by PyTorch: https://pytorch.org/get-started/locally"
    if not torch.distributed.is_available():
        return bad(name, "torch is built without torch.distributed", todo)
    if seen:
        if not torch.distributed.is_nccl_available():
            return bad(name, "torch is built without NCCL, through which GPUs talk", todo)
        return ok(name, f"NCCL {_dotted(torch.cuda.nccl.version())}")
    if not torch.distributed.is_gloo_available():
        return bad(name, "torch is built without gloo, through which ranks on CPUs talk", todo)
    return ok(name, "gloo, for ranks on CPUs")


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
