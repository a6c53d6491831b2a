"""Where weights come from, and beginning with them.

A run folder, one of its checkpoints, an export, or a file with a card: by its path, or one that ships as
``pretrained:NAME``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from diffbase.system_error import is_there
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.engine.engine import Engine
from diffcore.engine.filling import Read, Slice
from diffcore.engine.ranks import first_problem, from_rank
from diffcore.runs import checkpoint, run_folder
from diffcore.runs.pretrained import card, files
from diffcore.runs.pretrained.card import Card
from diffcore.runs.run_folder import run_of
from diffcore.runs.stored.record import read_state
from diffcore.runs.tensors import DamagedError, load_tensors, open_tensors
from shards.schema import Attribute

FILES = {"ema": "model.safetensors", "raw": "model.raw.safetensors"}
"""The weights' file names in an export."""
DATA = "data.json"


@dataclass(frozen=True)
class Source:
    """Weights of one step, with what belongs to them."""

    folder: Path
    """The checkpoint or the export; or the file."""
    config: Config
    data: Mapping[str, Any]
    """As in ``run_folder.data_record``."""
    step: int
    """Of the training; 0 where an export does not say."""
    card: Card | None = None
    """Of a file."""

    @property
    def schema(self) -> tuple[Attribute, ...]:
        """The attributes that the network was trained with."""
        return tuple(Attribute(a["name"], a["variants"], tuple(a["names"])) for a in self.data["schema"])

    @property
    def size(self) -> int:
        """Edge of the images, pixels."""
        return int(self.data["size"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the shards that the network learned from."""
        return str(self.data["fingerprint"])

    @property
    def is_export(self) -> bool:
        """Whether the weights lie in an export, and not in a checkpoint or a file with a card."""
        return self.card is None and not is_there(self.folder / "state.json")

    def weights(self, which: str) -> dict[str, Tensor]:
        """``ema`` or ``raw`` weights by name: fp32, CPU. A checkpoint was checked when it was found."""
        if self.card is not None:
            return files.averaged(self.folder, self.card, which)
        if self.is_export:
            return _read(self.folder / FILES[which])
        return checkpoint.read_weights(self.folder, "weights" if which == "raw" else which)


def find(
    path: Path, which: str = "newest", *, whole: bool = True, damaged: Mapping[str, str] | None = None
) -> Source:
    """What is at ``path``; InputError where it is none of the four, or damaged.

    ``which``, of a run folder alone: newest, best or a step. ``whole`` and ``damaged`` as of
    ``checkpoint.newest``.
    """
    if (file := files.located(path)) is not None:
        if which != "newest":
            raise InputError(f"checkpoint {which}: {path} is one set of weights; give a run folder")
        told = card.read(file)
        data = told.data.model_dump(by_alias=True)
        return Source(file, told.config(str(card.card_of(file))), data, told.step, told)
    config = config_of(path)
    if run_of(path) != path or is_there(path / DATA):
        if which != "newest":
            raise InputError(f"checkpoint {which}: {path} is one set of weights; give its run folder")
        if is_there(path / DATA):
            data = _record(json_file.read(path / DATA), path / DATA)
            return Source(path, config, data, _step_of(path / FILES["ema"]))
        if problem := checkpoint.check(path, whole=whole):
            raise InputError(f"{path}: {problem}")
    folder = path if run_of(path) != path else choose(path, which, whole=whole, damaged=damaged)
    state = read_state(folder)
    return Source(folder, config, _record(state.data, folder / "state.json"), state.step)


def _record(tree: Any, where: Path) -> dict[str, Any]:
    """A ``data_record`` that was written down. InputError if it is none."""
    return validated(run_folder.DataRecord, tree, f"{where}: data").model_dump(by_alias=True)


@contextmanager
def _named(file: Path) -> Iterator[None]:
    """What safetensors has against a file, as an InputError."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{file}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{file}: not a whole safetensors file: {error}") from error


def _read(file: Path) -> dict[str, Tensor]:
    with _named(file):
        return load_tensors(file)


def _step_of(file: Path) -> int:
    with _named(file), open_tensors(file) as opened:
        step = (opened.metadata() or {}).get("step", "0")
        if not (step.isascii() and step.isdigit() and len(step) < 16):
            raise InputError(f"{file}: step {step!r:.100} in its metadata is no whole number")
        return int(step)


def config_of(path: Path) -> Config:
    """The config of a run folder, a checkpoint, an export or a file with a card. InputError if it is none."""
    if (weights := files.located(path)) is not None:
        return card.read(weights).config(str(card.card_of(weights)))
    file = run_of(path) / "config.yaml"
    if not is_there(file):
        raise InputError(f"{path}: no run folder, checkpoint or export (no config.yaml)")
    return configure.load(file)


def choose(run: Path, which: str, *, whole: bool = True, damaged: Mapping[str, str] | None = None) -> Path:
    """A complete, undamaged checkpoint of a run: newest, best or a step. InputError if it is not there.

    ``whole`` and ``damaged`` as of ``checkpoint.newest``.
    """
    if which == "newest":
        folder, skipped = checkpoint.newest(run, whole=whole, damaged=damaged)
        if folder is None:
            raise InputError(f"{run}: no complete checkpoint ({'; '.join(skipped) or 'none was written'})")
        return folder
    if which == "best":
        found = checkpoint.best(run)
        if found is None:
            raise InputError(f"{run}: no checkpoint is the best yet: train.best was never measured")
        folder = found[0]
    elif which.isascii() and which.isdigit():
        folder = checkpoint.folder_at(run, int(which))
    else:
        raise InputError(f"checkpoint {which}: allowed are newest, best or a step")
    problem = checkpoint.check(folder, whole=whole)
    if problem is not None:
        there = ", ".join(str(checkpoint.step_of(path)) for path in checkpoint.complete(run)) or "none"
        raise InputError(f"{folder}: {problem}; complete checkpoints: {there}")
    return folder


def open_weights(file: Path) -> tuple[dict[str, list[int]], Read]:
    """Shapes by name of an export's weights, and what reads a part of one; nothing is read before.

    InputError, here or of a part, where it is no whole file of weights.
    """
    with _named(file):
        opened = open_tensors(file)
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
    shapes = {name: list(part.get_shape()) for name, part in slices.items()}

    def read(_: str, name: str, start: int, count: int) -> Tensor:
        """Elements ``start`` .. ``start + count``: of whole rows of the first dimension that hold them."""
        row = prod(shapes[name][1:])
        first, last = start // row if row else 0, -(-(start + count) // row) if row else 0
        with _named(file):
            rows = slices[name][first:last] if shapes[name] else opened.get_tensor(name)
        part: Tensor = rows.reshape(-1)[start - first * row :][:count].float()
        return part

    return shapes, read


def _of_card(file: Path, which: str) -> tuple[dict[str, list[int]], Read]:
    """As ``open_weights``, of a file with a card. InputError where it is damaged."""
    weights = files.averaged(file, card.read(file), which)

    def read(_: str, name: str, start: int, count: int) -> Tensor:
        return weights[name].reshape(-1)[start : start + count]

    return {name: list(weight.shape) for name, weight in weights.items()}, read


def start_from(engine: Engine, path: Path, which: str) -> None:
    """Begin with ``ema`` or ``raw`` weights of what ``find`` takes. A collective.

    Of an export the file of weights is enough; a file with a card is small, and every rank reads all of it.
    A checkpoint is taken up as where a run goes on: rank 0 looks for it, and every rank checks what it reads.
    Of a run folder it is the newest in which none found damage.
    InputError, on every rank, where there are no weights, or they do not fit the network.
    """
    world, damaged = engine.world, dict[str, str]()
    kind = "weights" if which == "raw" else which
    while True:
        place = _agreed(engine, path, which, damaged)
        try:
            with checkpoint.on_all(place, world):
                shapes, read, slices = _opened(place, path, which, engine)
            if (misfit := first_problem(engine.misfit(shapes), world)) is not None:
                raise InputError(f"init_from: {path}: {misfit}")
            with checkpoint.on_all(place, world):
                engine.fill({kind: engine.masters()}, read, slices)
            break
        except DamagedError as error:
            problem = str(error)
        if place.parent == path:  # an export's file, which the problem names
            raise InputError(problem)
        if place == path or place.suffix == files.SUFFIX:  # one that ships: there is no other
            raise InputError(f"{path}: {problem}")
        damaged[place.name] = problem
    engine.write_weights(engine.full_weights())


def _agreed(engine: Engine, path: Path, which: str, damaged: Mapping[str, str]) -> Path:
    """What rank 0 finds, on every rank: a file of weights, or the folder of a checkpoint."""
    place, refused = None, None
    if engine.world.main:
        try:
            place = str(_place(path, which, damaged))
        except InputError as error:
            refused = str(error)
    place, refused = from_rank([place, refused], engine.world)
    if refused is not None:
        raise InputError(refused)
    return Path(place)


def _place(path: Path, which: str, damaged: Mapping[str, str]) -> Path:
    if (named := files.located(path)) is not None:
        card.read(named)
        return named
    file = path / FILES[which]
    if is_there(file):
        return file
    found = find(path, whole=False, damaged=damaged)
    return file if found.is_export else found.folder


def _opened(
    place: Path, path: Path, which: str, engine: Engine
) -> tuple[Mapping[str, list[int]], Read, Sequence[Slice] | None]:
    """Shapes by name, what reads parts, and as of ``Shards.slices`` where they lie."""
    if place.suffix == files.SUFFIX and place.parent != path:  # in the folder of that path lies an export's
        return (*_of_card(place, which), None)
    if place.name == FILES[which]:
        return (*open_weights(place), None)
    state, shards = checkpoint.opened(place, engine.world)
    return state.shapes, shards.read, shards.slices
