"""Checkpoints: complete or not there, free of pickle, the same for every ZeRO stage and world size.

A checkpoint is a folder ``checkpoints/step-00001000`` with

    shard-00000-of-00008.safetensors   one per rank: its parts of the fp32 weights, of their EMA and of
                                       Adam's moments, as "weights/<parameter>", "ema/...", "exp_avg/..." and
                                       "exp_avg_sq/...", flat; where each begins is in the file's metadata
    state.json                         ``State``: step, identity of the experiment, where it was written
    COMPLETE                           written last: size and sha256 of every file above

All ranks write under a temporary name; when the last one has synced its shard, rank 0 renames the folder and
writes COMPLETE. A folder without COMPLETE, or that disagrees with it, does not count. Everything random and
the data order follow from (seed, samples seen), so no generator's state is kept. ``saver.Saver`` does all but
the copy into main memory beside the training; a part says whose and where it is, so any other number of ranks
at any ZeRO stage finds its own parts again (``Shards``).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from diffbase.cli import InputError
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.partitions import ADAM_MOMENTS

VERSION = 2
WEIGHTS = ("weights", "ema")
KINDS = (*WEIGHTS, *ADAM_MOMENTS)
SAVING = ".saving"
"""In the run folder while a checkpoint is being written: a launcher that must end the run may wait for it."""
ABSENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError)
KEEP = "KEEP"
"""In a checkpoint's folder: it is never removed (``python -m diffcore.checkpoints RUN --keep STEP``)."""


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself. ``version`` counts the changes of this schema."""

    step: int
    samples: int
    updates: int
    """Steps that changed the weights: all but those that a guard left out."""
    identity: dict[str, Any]
    data: dict[str, Any]
    world: int
    zero: int
    precision: str
    code: str
    shapes: dict[str, list[int]]
    """Of every parameter, by name."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What the learning rate and the guards remember (``diffcore.training.guards.progress``)."""
    scaler: dict[str, float] = field(default_factory=dict)
    """fp16's loss scale."""
    version: int = VERSION


def folder_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def folder_at(run: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder_of(run) / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(folder.name.removeprefix("step-"))


def shard_name(rank: int, world: int) -> str:
    """File name of the shard that rank ``rank`` of ``world`` writes."""
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


# --- what is there ----------------------------------------------------------------------------------------


def complete(run: Path) -> list[Path]:
    """Folders with COMPLETE, oldest first."""
    return sorted(path.parent for path in folder_of(run).glob("step-*/COMPLETE"))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as COMPLETE says, and a line for each one skipped.

    OSError where one cannot be read: that says nothing of what is in it.
    """
    skipped: list[str] = []
    for folder in sorted(folder_of(run).glob("step-*"), reverse=True):
        problem = check(folder)
        if problem is None:
            return folder, skipped
        skipped.append(f"checkpoint {folder.name} skipped: {problem}")
    return None, skipped


def best(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the best metric, and what best.json says of it: step, metric, value."""
    try:
        tree = json.loads((folder_of(run) / "best.json").read_text())
        folder = folder_at(run, int(tree["step"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return (folder, tree) if (folder / "COMPLETE").exists() else None


def check(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None. OSError where the disk does not say."""
    if not (folder / "COMPLETE").exists():
        return "no COMPLETE, its save was cut off"
    try:
        manifest = json.loads((folder / "COMPLETE").read_text())
        if "state.json" not in manifest:
            return "COMPLETE does not name state.json"
        for name, said in sorted(manifest.items()):
            path = folder / name
            if Path(name).name != name:
                return f"COMPLETE names {name!r}, which is no file's plain name"
            if path.stat().st_size != said["bytes"]:
                return f"{name} has {path.stat().st_size} bytes, COMPLETE says {said['bytes']}"
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != said["sha256"]:
                    return f"{name} does not have the sha256 that COMPLETE says"
    except (*ABSENT, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def prune(run: Path, keep: int) -> None:
    """Remove complete checkpoints but the ``keep`` newest, the best and the marked. COMPLETE goes first."""
    spared = best(run)
    for folder in complete(run)[:-keep]:
        if (folder / KEEP).exists() or (spared and spared[0] == folder):
            continue
        _remove(folder)


def clear_after(run: Path, step: int) -> None:
    """Remove what a run that goes on from ``step`` is about to make again, and what a cut-off save left."""
    for folder in folder_of(run).glob("step-*"):
        if (folder / KEEP).exists():
            continue  # damaged, or it would have been gone on from; only its own step makes it anew
        if step_of(folder) > step or not (folder / "COMPLETE").exists():
            _remove(folder)
    for leftover in folder_of(run).glob(".step-*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()
    (run / SAVING).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    (folder / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(folder)


# --- reading ----------------------------------------------------------------------------------------------


def read_state(folder: Path) -> State:
    """A checkpoint's state.json. InputError for another version of the schema."""
    tree = json.loads((folder / "state.json").read_text())
    if tree.get("version") != VERSION:
        raise InputError(f"{folder}: checkpoint version {tree.get('version')}, this code reads {VERSION}")
    return State(**tree)


class Shards:
    """The tensors of a checkpoint by (kind, parameter), put together from whatever ranks wrote them.

    Files are mapped, and only what is asked for is read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._parts: dict[str, list[tuple[int, int, Any]]] = {}
        for path in sorted(folder.glob("shard-*.safetensors")):
            try:
                file = safe_open(path, framework="pt")
                starts = json.loads(file.metadata()["starts"])
                for name, start in starts.items():
                    count = prod(file.get_slice(name).get_shape())
                    self._parts.setdefault(name, []).append((int(start), count, file))
            except (SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
                raise InputError(f"{path}: not a whole shard of a checkpoint: {error}") from error

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements ``start`` .. ``start + count`` of a parameter: fp32 [count], CPU."""
        result, found = torch.empty(count), 0
        for begin, size, file in self._parts.get(f"{kind}/{name}", []):
            low, high = max(start, begin), min(start + count, begin + size)
            if low < high:
                part = file.get_slice(f"{kind}/{name}")[low - begin : high - begin]
                result[low - start : high - start] = part
                found += high - low
        if found != count:
            raise InputError(
                f"{self.folder}: {kind}/{name} has {found} of {count} elements wanted at {start}"
            )
        return result


def read_weights(folder: Path, which: str) -> dict[str, Tensor]:
    """``ema``, ``weights`` or one of Adam's moments of a checkpoint: name -> fp32 tensor on the CPU."""
    shards = Shards(folder)
    shapes = read_state(folder).shapes
    return {name: shards.read(which, name, 0, prod(shape)).view(shape) for name, shape in shapes.items()}


def load(folder: Path, engine: Engine, ema: Ema) -> State:
    """Take up a checkpoint, at any ZeRO stage and world size. A collective."""
    state, shards = read_state(folder), Shards(folder)
    engine.load(shards.read, state.updates)
    engine.load_scaler_state(state.scaler)
    engine.fill(ema.shards, "ema", shards.read)
    return state
