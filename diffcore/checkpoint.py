"""Checkpoints: complete or not there, free of pickle, the same for every ZeRO stage and world size.

A checkpoint is a folder ``checkpoints/step-00001000`` with

    shard-00000-of-00008.safetensors   one a rank: its parts of the fp32 weights, of their EMA and of
                                       Adam's moments, as "weights/<parameter>", "ema/...", "exp_avg/..." and
                                       "exp_avg_sq/...", flat; where each begins is in the file's metadata
    state.json                         ``State``: step, identity of the experiment, where it was written
    COMPLETE                           written last: size and sha256 of every file above

All ranks write under a temporary name; when the last one has synced its shard, rank 0 renames the folder and
writes COMPLETE. A folder without COMPLETE, or that disagrees with it, does not count. Everything random and
the data order follow from (seed, samples seen), so no generator's state is kept. ``Saver`` does all but the
copy into main memory beside the training; a part says whose and where it is, so any other number of ranks
at any ZeRO stage finds its own parts again (``Shards``).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffbase import ledger
from diffbase.cli import InputError
from diffbase.files import open_atomic, sync_folder, write_atomic
from diffcore.config import Config
from diffcore.ema import Ema
from diffcore.engine import ADAM_MOMENTS, Engine
from diffcore.run_folder import code_version
from diffcore.world import World, gather_objects, side_group

T = TypeVar("T")

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
    """What the learning rate and the guards remember (``diffcore.progress``)."""
    scaler: dict[str, float] = field(default_factory=dict)
    """fp16's loss scale."""
    version: int = VERSION


def state_now(
    config: Config, data: dict[str, Any], step: int, updates: int, engine: Engine, progress: dict[str, Any]
) -> State:
    """The state of a run of ``config`` on ``data`` after ``step`` steps."""
    return State(
        step=step,
        samples=step * config.batch.size,
        updates=updates,
        identity=config.identity(),
        data=data,
        world=engine.world.size,
        zero=config.engine.zero,
        precision=config.engine.precision,
        code=code_version(),
        shapes=engine.shapes(),
        progress=progress,
        scaler=engine.scaler_state(),
    )


def folder_of(run: Path) -> Path:
    return run / "checkpoints"


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def shard_name(rank: int, world: int) -> str:
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


# --- writing ----------------------------------------------------------------------------------------------


class Saver:
    """Writes checkpoints beside the training: the loop waits only for a copy of its tensors.

    One at a time: a second ``save`` waits until the first is complete. ``wait`` does so at the end. What goes
    wrong on any rank is raised there, on every rank.
    """

    def __init__(self, run: Path, keep: int, world: World) -> None:
        self.run, self.keep, self.world = run, keep, world
        self._group = side_group()  # its collectives must not mix with the training's
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, state: State, engine: Engine, ema: Ema, best: Mapping[str, Any] | None = None) -> None:
        """Begin the checkpoint of ``state.step``; ``best`` (metric and value) makes it the best so far.

        A collective: every rank calls it at the same step.
        """
        began = time.monotonic()
        self.wait()
        tensors: dict[str, Tensor] = {}
        starts: dict[str, int] = {}
        for kind, shards in {"weights": engine.masters(), "ema": ema.shards, **engine.moments()}.items():
            for name, start, part in engine.parts(shards):
                tensors[f"{kind}/{name}"] = part.to("cpu", copy=True)
                starts[f"{kind}/{name}"] = start
        waited = time.monotonic() - began
        self._thread = threading.Thread(
            target=self._guarded, args=(state, tensors, starts, best, waited), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> None:
        """Until the checkpoint in hand, if any, is complete."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is not None:
            raise self._error

    def _guarded(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:
            self._error = error

    def _write(
        self,
        state: State,
        tensors: dict[str, Tensor],
        starts: dict[str, int],
        best: Mapping[str, Any] | None,
        waited: float,
    ) -> None:
        began, main = time.monotonic(), self.world.main

        def shard() -> dict[str, Any]:
            if main:
                (self.run / SAVING).write_text(f"{state.step}\n")
                ledger.record(self.run, "saving", step=state.step)
            return write_shard(temporary_of(self.run, state.step), self.world, tensors, starts)

        manifest = {name: said for part in self._on_all(shard) for name, said in part.items()}

        def rest() -> None:
            if not main:
                return
            finish(self.run, state, manifest)
            if best is not None:
                write_atomic(
                    folder_of(self.run) / "best.json",
                    (json.dumps({"step": state.step, **best}, indent=1) + "\n").encode(),
                )
            prune(self.run, self.keep)
            (self.run / SAVING).unlink(missing_ok=True)
            took = round(time.monotonic() - began, 3)
            ledger.record(self.run, "saved", step=state.step, seconds=took, waited=round(waited, 3))

        self._on_all(rest)

    def _on_all(self, work: Callable[[], T]) -> list[T]:
        """What ``work`` gives on each rank; OSError on all of them if it fails on one, for which the others
        would wait otherwise."""
        problem, result = None, None
        try:
            result = work()
        except OSError as error:
            problem = error
        told = gather_objects((result, problem), self.world, self._group)
        for rank, (_, failed) in enumerate(told):
            if failed is not None:
                if self.world.main:
                    (self.run / SAVING).unlink(missing_ok=True)
                raise OSError(failed.errno, f"{failed.strerror} (checkpoint, rank {rank})", failed.filename)
        return [result for result, _ in told]


def temporary_of(run: Path, step: int) -> Path:
    return folder_of(run) / f".step-{step:08d}.tmp"


def write_shard(
    folder: Path, world: World, tensors: Mapping[str, Tensor], starts: Mapping[str, int]
) -> dict[str, dict[str, Any]]:
    """Write this rank's shard and sync it; returns its line of COMPLETE."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / shard_name(world.rank, world.size)
    try:
        save_file(dict(tensors), path, metadata={"starts": json.dumps(starts, sort_keys=True)})
    except SafetensorError as error:  # its words for a full or failing disk: "... (os error 28)"
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
    return _synced(path)


def _synced(path: Path) -> dict[str, dict[str, Any]]:
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {path.name: {"bytes": path.stat().st_size, "sha256": digest}}


def finish(run: Path, state: State, manifest: Mapping[str, Any]) -> None:
    """Make the folder whose shards are all there a checkpoint."""
    temporary = temporary_of(run, state.step)
    final = folder_of(run) / f"step-{state.step:08d}"
    shutil.rmtree(final, ignore_errors=True)  # of a save that was cut off: COMPLETE is not there
    path = temporary / "state.json"
    path.write_text(json.dumps(asdict(state), indent=1, sort_keys=True) + "\n")
    manifest = {**manifest, **_synced(path)}
    sync_folder(temporary)
    temporary.rename(final)
    sync_folder(final.parent)
    with open_atomic(final / "COMPLETE") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write((json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())


# --- what is there ----------------------------------------------------------------------------------------


def complete(run: Path) -> list[Path]:
    """Folders with COMPLETE, oldest first."""
    return sorted(path.parent for path in folder_of(run).glob("step-*/COMPLETE"))


def newest(run: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as COMPLETE says, and a line for each one skipped.

    OSError where one cannot be read: that says nothing of what is in it.
    """
    skipped = []
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
        folder = folder_of(run) / f"step-{int(tree['step']):08d}"
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
