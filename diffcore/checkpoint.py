"""Checkpoints: complete or not there, free of pickle, the same for every ZeRO stage and world size.

A checkpoint is a folder ``checkpoints/step-00001000`` with

    weights.safetensors     fp32 weights by parameter name
    ema.safetensors         their moving average
    optimizer.safetensors   Adam's moments, "<name>.exp_avg" and "<name>.exp_avg_sq"
    state.json              ``State``: step, samples seen, identity of the experiment, where it was written
    COMPLETE                written last: size and sha256 of every file above

Rank 0 writes it under a temporary name, syncs it, renames it and then writes COMPLETE; a folder without
COMPLETE, or that disagrees with it, does not count. Everything random and the data order follow from (seed,
samples seen), so no generator's state is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffcore.config import Config
from diffcore.ema import Ema
from diffcore.engine import Engine, World, barrier
from diffcore.run_folder import code_version
from shards.cli import InputError
from shards.files import sync_folder, write_atomic

VERSION = 1
FILES = ("weights.safetensors", "ema.safetensors", "optimizer.safetensors", "state.json")


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself. ``version`` counts the changes of this schema."""

    step: int
    samples: int
    identity: dict[str, Any]
    data: dict[str, Any]
    world: int
    zero: int
    precision: str
    code: str
    version: int = VERSION

    @classmethod
    def now(cls, config: Config, data: dict[str, Any], step: int, world: World) -> State:
        """The state of a run of ``config`` on ``data`` after ``step`` steps."""
        return cls(
            step=step,
            samples=step * config.batch.size,
            identity=config.identity(),
            data=data,
            world=world.size,
            zero=config.engine.zero,
            precision=config.engine.precision,
            code=code_version(),
        )


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def save(run: Path, state: State, engine: Engine, ema: Ema, keep: int) -> None:
    """Write the checkpoint of ``state.step`` and remove all but the ``keep`` newest.

    A collective: every rank calls it, rank 0 writes.
    """
    main = engine.world.main
    weights = _kept(engine.full_weights(), main)
    averages = _kept(ema.full(), main)
    moments = _kept(engine.full_states(), main)
    if main:
        _write(folder_of(run), state, weights, averages, moments)
        _prune(run, keep)
    barrier()


def _kept(tensors: Iterator[tuple[str, Tensor]], keep: bool) -> dict[str, Tensor]:
    kept = {}
    for name, tensor in tensors:  # every rank iterates: each item is a collective
        if keep:
            kept[name] = tensor.detach().to("cpu", copy=True).contiguous()
    return kept


def _write(
    parent: Path,
    state: State,
    weights: Mapping[str, Tensor],
    ema: Mapping[str, Tensor],
    moments: Mapping[str, Tensor],
) -> None:
    parent.mkdir(mode=0o700, exist_ok=True)
    final = parent / f"step-{state.step:08d}"
    temporary = parent / f".{final.name}.tmp"
    for leftover in (temporary, final):  # of a save that was cut off: COMPLETE is not there
        shutil.rmtree(leftover, ignore_errors=True)
    temporary.mkdir(mode=0o700)
    save_file(dict(weights), temporary / "weights.safetensors")
    save_file(dict(ema), temporary / "ema.safetensors")
    save_file(dict(moments), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(asdict(state), indent=1, sort_keys=True) + "\n")
    manifest = {}
    for name in FILES:
        path = temporary / name
        path.chmod(0o600)
        with path.open("rb") as file:
            os.fsync(file.fileno())
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        manifest[name] = {"bytes": path.stat().st_size, "sha256": digest}
    temporary.rename(final)
    write_atomic(final / "COMPLETE", (json.dumps(manifest, indent=1) + "\n").encode())
    sync_folder(parent)


def complete(run: Path) -> list[Path]:
    """Folders with COMPLETE, oldest first."""
    return sorted(path.parent for path in folder_of(run).glob("step-*/COMPLETE"))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as COMPLETE says, and a line for each one skipped."""
    skipped = []
    for folder in reversed(complete(run)):
        problem = check(folder)
        if problem is None:
            return folder, skipped
        skipped.append(f"checkpoint {folder.name} skipped: {problem}")
    return None, skipped


def check(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / "COMPLETE").read_text())
        for name in FILES:
            path, said = folder / name, manifest[name]
            if path.stat().st_size != said["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, COMPLETE says {said['bytes']}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                    return f"{name} does not have the sha256 that COMPLETE says"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _prune(run: Path, keep: int) -> None:
    """Remove all but the ``keep`` newest complete checkpoints. COMPLETE goes first."""
    for folder in complete(run)[:-keep]:
        (folder / "COMPLETE").unlink()
        shutil.rmtree(folder)


def clear_after(run: Path, step: int) -> None:
    """Remove what a run that goes on from ``step`` is about to make again, and what a cut-off save left."""
    for folder in folder_of(run).glob("step-*"):
        if int(folder.name.removeprefix("step-")) > step:
            (folder / "COMPLETE").unlink(missing_ok=True)
            shutil.rmtree(folder)
    for leftover in folder_of(run).glob(".step-*.tmp"):
        shutil.rmtree(leftover)


def read_state(folder: Path) -> State:
    tree = json.loads((folder / "state.json").read_text())
    if tree.get("version") != VERSION:
        raise InputError(f"{folder}: checkpoint version {tree.get('version')}, this code reads {VERSION}")
    return State(**tree)


def read_weights(folder: Path, which: str) -> dict[str, Tensor]:
    """``ema`` or ``weights`` of a checkpoint: name -> fp32 tensor on the CPU."""
    path = folder / f"{which}.safetensors"
    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole safetensors file: {error}") from error


def load(folder: Path, engine: Engine, ema: Ema) -> State:
    """Take up a checkpoint, at any ZeRO stage and world size. A collective."""
    state = read_state(folder)
    moments = load_file(folder / "optimizer.safetensors")
    engine.load_full_states(read_weights(folder, "weights"), moments, state.step)
    ema.load(read_weights(folder, "ema"))
    return state
