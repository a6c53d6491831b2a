"""Checkpoints: complete or not there, free of pickle, the same for every ZeRO stage and world size.

A checkpoint is a folder ``checkpoints/step-00001000`` with

    shard-00000-of-00008.safetensors   of some neighbouring ranks, as many as fill 64 MiB: their parts of the
                                       fp32 weights, of their EMA and of Adam's moments, as
                                       "weights/<parameter>", "ema/...", "exp_avg/..." and "exp_avg_sq/..."
                                       (of Muon's matrices "momentum/..." instead of the last two), flat;
                                       where each begins is in the file's metadata
    state.json                         ``State``: step, identity of the experiment, where it was written
    COMPLETE                           written last: size and SHA-256 of every file above, and which
                                       elements are in which (``tensors.Seal``)

All ranks write under a temporary name; when the last one has synced its shard, rank 0 renames the folder and
writes COMPLETE. A folder without COMPLETE, or that disagrees with it, does not count. Everything random and
the data order follow from (seed, samples seen), so no generator's state is kept. ``saver.Saver`` does all but
the copy into main memory beside the training; a part says whose and where it is, so any other number of ranks
at any ZeRO stage finds its own parts again (``Shards``), and opens only the files that have them.

No damaged byte is trained on. ``check`` reads all. A start has rank 0 look at COMPLETE, the files' sizes and
state.json, and tell the others what is in them (``opened``), and every rank check what it reads of the shards
(``load``): every element has its rank, so all ranks together check all of them, before the first step. Under
ZeRO-0, where every rank needs all, each reads and checks its part for all (``engine.filling``).
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import set_aside
from diffbase.formats import json_file
from diffbase.system_error import NO_FILE, is_there, names_in, patiently, sha256_of
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, first_problem, from_rank
from diffcore.runs.stored.record import LARGEST, WEIGHTS, OtherVersionError, State, manifest, read_state
from diffcore.runs.stored.shards import Shards
from diffcore.runs.tensors import Count, DamagedError, SealedFile

SAVING = ".saving"
"""In the run folder while a checkpoint is being written: a launcher that must end the run may wait for it."""
STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,14})")
KEEP = "KEEP"
"""In a checkpoint's folder: it is never removed (``python -m diffcore.checkpoints RUN --keep STEP``)."""


class Best(BaseModel):
    """best.json: the checkpoint with the best metric."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    step: Count
    metric: Annotated[str, Field(max_length=200)] = ""
    value: float = 0.0
    attributes: Annotated[int, Field(ge=1, le=10**6)] | None = None
    """Of a fidelity: over how many attributes it is the mean."""


def folder_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def folder_at(run: Path, step: int) -> Path:
    """The checkpoint of a step."""
    return folder_of(run) / f"step-{step:08d}"


def folders(run: Path) -> list[Path]:
    """Everything under a checkpoint's name, complete or not, by step. A copy under another name is none."""
    where = folder_of(run)
    return sorted((where / name for name in names_in(where) if STEP.fullmatch(name)), key=step_of)


def step_of(folder: Path) -> int:
    """The step of a checkpoint, from its folder's name."""
    return int(folder.name.removeprefix("step-"))


# --- what is there ----------------------------------------------------------------------------------------


def complete(run: Path) -> list[Path]:
    """Folders with COMPLETE, oldest first."""
    return [folder for folder in folders(run) if is_there(folder / "COMPLETE")]


def newest(
    run: Path, *, whole: bool = True, damaged: Mapping[str, str] | None = None
) -> tuple[Path | None, list[str]]:
    """The newest checkpoint that can be loaded, and a line for each one skipped.

    ``whole`` as of ``check``; ``damaged``: what was found in some, by their folders' names, when they were
    read. OSError where one cannot be read: that says nothing of what is in it. OtherVersionError for one of
    other code.
    """
    skipped: list[str] = []
    for folder in reversed(folders(run)):
        problem = (damaged or {}).get(folder.name) or check(folder, whole=whole)
        if problem is None:
            return folder, skipped
        skipped.append(f"checkpoint {folder.name} skipped: {problem}")
    return None, skipped


def best(run: Path) -> tuple[Path, dict[str, Any]] | None:
    """The checkpoint with the best metric, and what best.json says of it: step, metric, value.

    None if it is not there. InputError for a damaged best.json.
    """
    path = folder_of(run) / "best.json"
    if not is_there(path):
        return None
    said = validated(Best, json_file.read(path, most=10_000), str(path))
    folder = folder_at(run, said.step)
    return (folder, said.model_dump(exclude_unset=True)) if is_there(folder / "COMPLETE") else None


def clear_best(run: Path) -> str | None:
    """Set a damaged best.json aside; a line that says so, or None."""
    try:
        best(run)
    except InputError as error:
        return f"{error}; it is kept as {set_aside(folder_of(run) / 'best.json').name}"
    return None


def check(folder: Path, *, whole: bool = True) -> str | None:
    """What is wrong with a checkpoint, or None: then it can be loaded. OSError where the disk does not say.

    Not ``whole``: without the pieces of files that whoever reads them checks. OtherVersionError for one that
    other code wrote.
    """
    if not is_there(folder / "COMPLETE"):
        return "no COMPLETE, its save was cut off"
    try:
        files = manifest(folder)
        for name, said in sorted(files.items()):
            path = folder / name
            if not is_there(path):
                return f"{name} is missing"
            size = patiently(path.stat, path).st_size
            if size != said.bytes:
                return f"{name} has {size} bytes, COMPLETE says {said.bytes}"
            if said.pieces:
                if whole:
                    SealedFile(path, said).check()
            elif sha256_of(path) != said.sha256:
                return f"{name} does not have the sha256 that COMPLETE says"
        state = read_state(folder)
        if STEP.fullmatch(folder.name) and state.step != step_of(folder):
            return f"state.json is of step {state.step}"
        Shards(folder).check(state)
    except OtherVersionError:
        raise
    except InputError as error:
        return str(error).removeprefix(f"{folder}/")
    except NO_FILE as error:
        return f"{type(error).__name__}: {error}"
    return None


def prune(run: Path, keep: int) -> None:
    """Remove complete checkpoints but the ``keep`` newest, the best and the marked. COMPLETE goes first.

    A damaged best.json does not say which one to spare: then nothing is removed, and InputError tells of it.
    """
    if problem := clear_best(run):
        raise InputError(f"{problem}; this time no checkpoint is removed")
    spared = best(run)
    for folder in complete(run)[:-keep]:
        if is_there(folder / KEEP) or (spared and spared[0] == folder):
            continue
        _remove(folder)


def clear_after(run: Path, step: int) -> None:
    """Remove what a run that goes on from ``step`` is about to make again, and what a cut-off save left."""
    for folder in folders(run):
        if is_there(folder / KEEP):
            continue  # damaged, or it would have been gone on from; only its own step makes it anew
        if step_of(folder) > step or not is_there(folder / "COMPLETE"):
            _remove(folder)
    for leftover in folder_of(run).glob(".step-*.tmp"):
        _remove(leftover)
    (run / SAVING).unlink(missing_ok=True)


def _remove(folder: Path) -> None:
    if folder.is_symlink() or not folder.is_dir():  # what a link leads to is not ours to remove
        folder.unlink()
        return
    with contextlib.suppress(IsADirectoryError):
        (folder / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(folder)


# --- reading ----------------------------------------------------------------------------------------------


def read_weights(folder: Path, which: str) -> dict[str, Tensor]:
    """``ema``, ``weights`` or one of the moments of a checkpoint: name -> fp32 tensor on the CPU. Moments of
    Muon's are those of some parameters."""
    shards = Shards(folder)
    shapes = {
        name: shape
        for name, shape in read_state(folder).shapes.items()
        if which in WEIGHTS or shards.has(which, name)
    }
    return {name: shards.read(which, name, 0, prod(shape)).view(shape) for name, shape in shapes.items()}


def opened(folder: Path, world: World) -> tuple[State, Shards]:
    """A complete checkpoint, to be read by all ranks. A collective.

    state.json and COMPLETE are read by rank 0 alone, which tells the others what is in them: thousands of
    ranks would ask a file system for the same two files. On every rank InputError where they are damaged, or
    OtherVersionError; on a rank that does not find a whole shard of older code, InputError.
    """
    trees, problem = list[Any](), None
    if world.main:
        try:
            trees = [json_file.read(folder / name, most=LARGEST) for name in ("state.json", "COMPLETE")]
        except InputError as error:
            problem = str(error)
    trees, problem = from_rank([trees, problem], world)
    if problem is not None:
        raise InputError(problem)
    return read_state(folder, trees[0]), Shards(folder, trees[1])


@contextlib.contextmanager
def on_all(folder: Path, world: World) -> Iterator[None]:
    """Around what reads ``folder``: an InputError of one rank is a DamagedError on every. A collective."""
    problem = None
    try:
        yield
    except OtherVersionError:
        raise
    except InputError as error:
        problem = str(error).removeprefix(f"{folder}/")
    if (problem := first_problem(problem, world)) is not None:
        raise DamagedError(problem)


def load(folder: Path, engine: Engine, ema: Ema) -> State:
    """Take up a checkpoint, at any ZeRO stage and world size. A collective.

    DamagedError, on every rank, where one found damage in what it read: then another is to be taken up.
    """
    with on_all(folder, engine.world):
        state, shards = opened(folder, engine.world)
    with on_all(folder, engine.world):
        engine.fill({**engine.states(state.updates), **ema.averages()}, shards.read, shards.slices)
    engine.load_scaler_state(state.scaler)
    engine.write_weights(engine.full_weights())
    return state
