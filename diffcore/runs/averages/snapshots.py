"""Snapshots of the power-function averages (engine/ema.py) while a run learns.

RUN/averages/step-00001000.safetensors has all averages that ``ema.posthoc`` names after a step, as
"SIGMA_REL/parameter", in fp16 (Karras et al. 2024 kept them so): 4 bytes a parameter of two. A resume makes
those after its checkpoint again, as they were.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import torch
from torch import Tensor

from diffbase.cli import InputError
from diffbase.files import renamed, sync_folder
from diffbase.system_error import named, names_in, told
from diffbase.trust import file_mode, make_folder
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.runs.tensors import write_tensors

NAME = re.compile(r"step-([0-9]{8,15})\.safetensors")


def folder_of(run: Path) -> Path:
    """Where a run's snapshots are."""
    return run / "averages"


def snapshots(run: Path) -> dict[int, Path]:
    """Step -> file, oldest first."""
    found = {
        int(m[1]): folder_of(run) / name for name in names_in(folder_of(run)) if (m := NAME.fullmatch(name))
    }
    return dict(sorted(found.items()))


def clear_after(run: Path, step: int) -> None:
    """Remove the snapshots that a run that goes on from ``step`` makes again, and what a cut-off one left."""
    for at, path in snapshots(run).items():
        if at > step:
            path.unlink()
    for leftover in folder_of(run).glob(".step-*.tmp"):
        leftover.unlink()


def write(run: Path, step: int, engine: Engine, ema: Ema) -> str | None:
    """Write the snapshot of this step. A collective. On rank 0 why it could not be written, or None: a run
    does not end for want of one."""
    tensors: dict[str, Tensor] = {}
    for sigma, shards in zip(ema.config.posthoc, ema.powers, strict=True):
        for name, tensor in engine.whole(shards):
            if engine.world.main:
                half = tensor.to("cpu", torch.float16, copy=True)
                fits = bool(half.isfinite().all())
                tensors[f"{sigma}/{name}"] = half if fits else tensor.to("cpu", copy=True)
    if not engine.world.main:
        return None
    folder = folder_of(run)
    path = folder / f"step-{step:08d}.safetensors"
    try:
        make_folder(folder)
        with renamed(path) as temporary:
            write_tensors(temporary, tensors, {"format": "pt", "step": str(step)})
            temporary.chmod(file_mode(folder))
            with named(temporary), temporary.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(folder)
    except OSError as error:
        return told(error)
    except InputError as error:  # of the folder's group; the other ranks go on
        return str(error)
    return None
