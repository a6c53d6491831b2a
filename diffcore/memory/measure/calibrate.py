"""A calibration of this machine's GPU: measured in processes of their own, and written as one JSON.

Imports no torch.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import REPOSITORY, write_json
from diffbase.machine import nvml
from diffbase.machine.ports import any_free
from diffcore.memory.calibration import SCHEMA, Measured, file_of

PATIENCE = 300
"""Seconds for all of it; most of them load torch."""


def calibrate(out: Path | None, source: str) -> tuple[Path, dict[str, Any]]:
    """Measure, and write ``out``, by default NAME-CUDA.json here. InputError without a GPU, or if it fails.

    ``source``: who measured it, for whoever reads the file.
    """
    if not nvml.count_gpus():
        raise InputError("--calibrate measures a GPU, and there is none here that NVML shows")
    tree = tree_of(differences(), source)
    path = Path(file_of(tree)) if out is None else out
    write_json(path, tree, sort_keys=True)
    return path, tree


def differences() -> dict[str, Any]:
    """What ``outside`` printed, of all GPUs that are shown as one group. InputError with its last line."""
    gpus = nvml.shown_devices(nvml.count_gpus())
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(any_free()), "WORLD_SIZE": str(len(gpus))}
    command = [sys.executable, "-m", "diffcore.memory.measure.outside"]
    ranks = [
        subprocess.Popen(
            command,
            cwd=REPOSITORY,
            env=os.environ | meeting | {"RANK": str(rank), "CUDA_VISIBLE_DEVICES": gpu},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, gpu in enumerate(gpus)
    ]
    try:
        said = [rank.communicate(timeout=PATIENCE) for rank in ranks]
    except subprocess.TimeoutExpired:
        raise InputError(f"--calibrate: took more than {PATIENCE} s") from None
    finally:
        for rank in ranks:
            rank.kill()
    if wrong := [err for rank, (_, err) in zip(ranks, said, strict=True) if rank.returncode]:
        raise InputError(f"--calibrate: {(wrong[0].strip().splitlines() or ['ended without a word'])[-1]}")
    found: dict[str, Any] = json.loads(said[0][0].splitlines()[-1])
    return found


def tree_of(found: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A calibration's JSON of what ``outside`` found. InputError where it is none: a reading below zero."""
    versions = f"driver {found['driver']}, torch {found['torch']}"
    tree = {
        "schema": SCHEMA,
        "gpu": found["gpu"],
        "cuda": found["cuda"],
        "context": found["context"] + found["cublas"] + found["cudnn"],
        "workspaces": found["workspaces"],
        "nccl": found["nccl"],
        "nccl_ranks": found["ranks"],
        "source": f"{source}, {versions}" if source else versions,
    }
    validated(Measured, tree, "--calibrate")
    return tree
