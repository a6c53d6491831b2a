"""What a GPU's process holds beside torch's tensors: the CUDA context, libraries, NCCL. Never derived, only
measured: ``benchmarks/gpu_memory.py`` takes NVML differences around each and prints an entry for this table.

Figures that nobody measured with this toolkit are marked as assumed, with where they come from.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffbase.cli import InputError

MIB = 2**20


@dataclass(frozen=True)
class Calibration:
    """Bytes outside torch's allocator for one GPU, and where they are from."""

    context: int
    """CUDA context and loaded kernels."""
    workspaces: int
    """cuBLAS's workspaces, inside torch's allocator: 8 of 4 MiB (engine.start's CUBLAS_WORKSPACE_CONFIG)
    for each thread that multiplies (forward's and backward's). cuDNN's depend on the algorithm that it picks
    and are not in it."""
    nccl: int
    """NCCL's buffers of one process group; a group of one rank has them too."""
    source: str
    measured: bool = False
    nccl_measured: bool = False
    """Over more than one GPU; a ``measured`` one is of a group of one rank at least."""

    def nccl_known(self, ranks: int) -> bool:
        """Whether NCCL's figure was measured for a group of so many ranks."""
        return self.nccl_measured or (self.measured and ranks == 1)

    def source_nccl(self, ranks: int) -> str:
        """Where NCCL's figure is from."""
        if self.nccl_known(ranks) or not self.measured:
            return self.source
        return f"{self.source}, of a group of one rank"


ASSUMED = Calibration(
    context=520 * MIB,
    workspaces=32 * MIB,
    nccl=600 * MIB,
    source="assumed: this GPU was not measured; NCCL's issue 964 reports 544 to 688 MB per group",
)
CALIBRATIONS: dict[tuple[str, str], Calibration] = {
    ("NVIDIA H200", "13.0"): Calibration(
        context=731_447_296,
        workspaces=65 * MIB,
        nccl=558 * MIB,
        source="benchmarks/gpu_memory.py, docs/gpu.md",
        measured=True,
    ),
}
"""(NVML's name of the GPU, torch.version.cuda) -> what was measured on it."""

GPUS = {"24GB": 24, "40GB": 40, "80GB": 80, "141GB": 141}
"""Cards by the memory that they are sold with: A10G and RTX 4090, A100, A100 and H100, H200."""

CARDS = {
    "T4": 16, "V100": 32, "A10": 24, "A10G": 24, "L4": 24, "RTX3090": 24, "RTX4090": 24, "RTX5090": 32,
    "A100-40GB": 40, "A100-80GB": 80, "A6000": 48, "L40S": 48, "H100": 80, "H100-NVL": 94, "H200": 141,
}  # fmt: skip
"""GB that well-known cards are sold with; a card sold in two sizes is named with its size."""

TOTAL = {24: 22_510, 40: 40_338, 48: 45_590, 80: 81_000, 94: 95_230, 141: 143_156}
"""MiB that CUDA says a card has (cudaMemGetInfo), of those sold with as many GB the one with least: A10 and
A10G, A100, L40S, H100, H100 NVL, H200. Other sizes: OTHERS per GB."""
OTHERS = 930
"""MiB per GB: a T4's 14.56 GiB of 16 GB, the least that is known."""


def calibration(gpu: str | None = None, cuda: str | None = None) -> Calibration:
    """The entry of a GPU by its NVML name and CUDA's version; of another version, said in its source, where
    that is all there is; what is assumed where there is none."""
    found = {version: entry for (name, version), entry in CALIBRATIONS.items() if name == gpu}
    if not found:
        return ASSUMED
    if cuda is None or cuda in found:
        return found[cuda or max(found)]
    version = max(found)
    return replace(found[version], source=f"{found[version].source}, under CUDA {version}", measured=False)


def card(text: str) -> float | None:
    """GB of the known card that ``text`` names ("H100", "rtx 4090", "a100 80gb"), None if it names none."""

    def plain(name: str) -> str:
        return "".join(c for c in name.upper() if c.isalnum())

    return {plain(name): float(size) for name, size in CARDS.items()}.get(plain(text))


def calibration_named(gpu: str | None) -> Calibration:
    """The entry of a GPU by its NVML name; None: what is assumed. InputError for a GPU not measured."""
    known = sorted({name for name, _ in CALIBRATIONS})
    if gpu is not None and gpu not in known:
        there = ", ".join(known) or "none yet; benchmarks/gpu_memory.py makes one"
        raise InputError(f"calibration {gpu}: no GPU of that name was measured; known: {there}")
    return calibration(gpu)


def capacity(gigabytes: float) -> int:
    """Bytes that a process may use of a card that is sold as ``gigabytes`` GB."""
    return TOTAL.get(int(gigabytes), int(gigabytes * OTHERS)) * MIB
