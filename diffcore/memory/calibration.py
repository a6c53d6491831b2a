"""What a GPU's process holds beside torch's tensors: the CUDA context, libraries, NCCL. Never derived, only
measured: ``benchmarks/gpu_memory.py`` takes NVML differences around each and prints an entry for this table.

Figures that nobody measured with this toolkit are marked as assumed, with where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass

MIB = 2**20


@dataclass(frozen=True)
class Calibration:
    """Bytes outside torch's allocator for one GPU, and where they are from."""

    context: int
    """CUDA context and loaded kernels."""
    workspaces: int
    """cuBLAS's workspace: 8 of 4 MiB, as CUBLAS_WORKSPACE_CONFIG=:4096:8 of engine.start asks; inside torch's
    allocator. cuDNN's depend on the algorithm it picks and are not in it."""
    nccl: int
    """NCCL's buffers of one process group, with more than one rank."""
    source: str
    measured: bool = False


ASSUMED = Calibration(
    context=520 * MIB,
    workspaces=32 * MIB,
    nccl=600 * MIB,
    source="assumed: no GPU was measured here; NCCL's issue 964 reports 544 to 688 MB a group",
)
CALIBRATIONS: dict[str, Calibration] = {}
"""NVML's name of the GPU -> what was measured on it."""

GPUS = {"24GB": 24, "40GB": 40, "80GB": 80, "141GB": 141}
"""Cards by the memory that they are sold with: A10G and RTX 4090, A100, A100 and H100, H200."""

SHARE = {24: 22_731, 40: 40_338, 80: 81_158, 141: 143_156}
"""MiB that nvidia-smi shows as the card's total, by what it is sold with; other sizes: 95 % of it."""


def calibration(gpu: str | None = None) -> Calibration:
    """The entry of a GPU by its NVML name; what is assumed where there is none."""
    return CALIBRATIONS.get(gpu or "", ASSUMED)


def capacity(gigabytes: float) -> int:
    """Bytes that a process may use of a card that is sold as ``gigabytes`` GB."""
    return SHARE.get(int(gigabytes), int(gigabytes * 1e9 * 0.95 / MIB)) * MIB
