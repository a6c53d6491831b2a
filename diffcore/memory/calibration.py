"""What a GPU's process holds beside torch's tensors: the CUDA context, libraries, NCCL. Never derived, only
measured: ``diffcore measure --calibrate`` takes NVML differences around each and writes one JSON.

``calibrations/`` has one a GPU and version of CUDA. Figures that nobody measured with this toolkit are marked
as assumed, with where they come from. Imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from diffbase.machine import cards
from diffbase.machine.cards import capacity

__all__ = ["ASSUMED", "GPUS", "Calibration", "calibration", "calibration_named", "capacity", "of_card"]

MIB = 2**20
SCHEMA = "diffcore.calibration/1"
FOLDER = Path(__file__).parent / "calibrations"
LARGEST = 10_000
"""Bytes of a file."""


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

GPUS = {"24GB": 24, "40GB": 40, "80GB": 80, "141GB": 141}
"""Cards by the memory that they are sold with: A10G and RTX 4090, A100, A100 and H100, H200."""

Size = Annotated[int, Field(ge=0, le=2**40)]


class Measured(BaseModel):
    """A file of ``calibrations/``: sizes in bytes."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    schema_: Annotated[Literal["diffcore.calibration/1"], Field(alias="schema")]
    gpu: Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,200}$")]
    """NVML's name."""
    cuda: Annotated[str, Field(pattern=r"^\d{1,3}\.\d{1,3}$")]
    """torch.version.cuda."""
    context: Size
    workspaces: Size
    nccl: Size
    nccl_ranks: Annotated[int, Field(ge=1, le=10**6)]
    """Of the group that NCCL's buffers were measured in."""
    source: Annotated[str, Field(pattern=r"^[\x20-\x7e]{1,1000}$")]
    """Who measured it, and under which driver and torch."""

    @property
    def entry(self) -> Calibration:
        """As the plans read it."""
        several = self.nccl_ranks > 1
        return Calibration(self.context, self.workspaces, self.nccl, self.source, True, several)


def load(path: Path) -> Measured:
    """One file. InputError, which names it, for what is none."""
    return validated(Measured, json_file.read(path, "no such calibration", most=LARGEST), str(path))


def file_of(found: Mapping[str, Any]) -> str:
    """The name of the file for a GPU and a version of CUDA: ``nvidia-h200-13.0.json``."""
    return re.sub(r"[^a-z0-9.]+", "-", f"{found['gpu']}-{found['cuda']}".lower()).strip("-.") + ".json"


@cache
def shipped() -> dict[tuple[str, str], Calibration]:
    """(NVML's name of the GPU, torch.version.cuda) -> what was measured on it."""
    files = [load(path) for path in sorted(FOLDER.glob("*.json"))]
    return {(one.gpu, one.cuda): one.entry for one in files}


def calibration(gpu: str | None = None, cuda: str | None = None) -> Calibration:
    """The entry of a GPU by its NVML name and CUDA's version; of another version, said in its source, where
    that is all there is; what is assumed where there is none."""
    found = {version: entry for (name, version), entry in shipped().items() if name == gpu}
    if not found:
        return ASSUMED
    version = max(found, key=lambda text: [int(part) for part in text.split(".")])
    if cuda is None or cuda in found:
        return found[cuda or version]
    return replace(found[version], source=f"{found[version].source}, under CUDA {version}", measured=False)


def of_card(card: cards.Card | None) -> Calibration:
    """The entry of a card of the table, or of a slice's own, where one was measured; else what is assumed."""
    names = sorted({gpu for gpu, _ in shipped() if card is not None and cards.find(gpu) == card})
    return calibration(names[0]) if names else ASSUMED


def calibration_named(gpu: str | None) -> Calibration:
    """The entry of a GPU by its NVML name, or of a file; None: what is assumed. InputError for a GPU not
    measured, and for a file that is none."""
    if gpu is None:
        return ASSUMED
    if gpu.endswith(".json"):
        return load(Path(gpu)).entry
    known = sorted({name for name, _ in shipped()})
    if gpu not in known:
        there = ", ".join(known) or "none yet"
        raise InputError(
            f"calibration {gpu}: no GPU of that name was measured; known: {there}; a file that "
            "diffcore measure wrote is taken too"
        )
    return calibration(gpu)
