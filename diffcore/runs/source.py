"""Where weights come from: a run folder, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
from diffcore.runs import checkpoint, run_folder
from diffcore.runs.run_folder import run_of
from diffcore.runs.tensors import load_tensors, open_tensors
from shards.schema import Attribute

FILES = {"ema": "model.safetensors", "raw": "model.raw.safetensors"}
"""The weights' file names in an export."""
DATA = "data.json"


@dataclass(frozen=True)
class Source:
    """Weights of one step, with what belongs to them."""

    folder: Path
    """The checkpoint or the export."""
    config: Config
    data: Mapping[str, Any]
    """As in ``run_folder.data_record``."""
    step: int
    """Of the training; 0 where an export does not say."""

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
        """Whether the weights lie in an export, and not in a checkpoint."""
        return not is_there(self.folder / "state.json")

    def weights(self, which: str) -> dict[str, Tensor]:
        """``ema`` or ``raw`` weights by name: fp32, CPU. A checkpoint was checked when it was found."""
        if self.is_export:
            return _read(self.folder / FILES[which])
        return checkpoint.read_weights(self.folder, "weights" if which == "raw" else which)


def find(path: Path, which: str = "newest") -> Source:
    """What is at ``path``; InputError where it is none of the three, or damaged.

    ``which``, of a run folder alone: newest, best or a step.
    """
    config = config_of(path)
    if run_of(path) != path or is_there(path / DATA):
        if which != "newest":
            raise InputError(f"checkpoint {which}: {path} is one set of weights; give its run folder")
        if is_there(path / DATA):
            data = _record(json_file.read(path / DATA), path / DATA)
            return Source(path, config, data, _step_of(path / FILES["ema"]))
        if problem := checkpoint.check(path):
            raise InputError(f"{path}: {problem}")
    folder = path if run_of(path) != path else choose(path, which)
    state = checkpoint.read_state(folder)
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
    """The config of a run folder, a checkpoint or an export. InputError where it is none."""
    file = run_of(path) / "config.yaml"
    if not is_there(file):
        raise InputError(f"{path}: no run folder, checkpoint or export (no config.yaml)")
    return configure.load(file)


def choose(run: Path, which: str) -> Path:
    """A complete, undamaged checkpoint of a run: newest, best or a step. InputError if it is not there."""
    if which == "newest":
        folder, skipped = checkpoint.newest(run)
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
    problem = checkpoint.check(folder)
    if problem is not None:
        there = ", ".join(str(checkpoint.step_of(path)) for path in checkpoint.complete(run)) or "none"
        raise InputError(f"{folder}: {problem}; complete checkpoints: {there}")
    return folder


def load_weights(path: Path, which: str) -> dict[str, Tensor]:
    """``ema`` or ``raw`` weights by name of a run folder, a checkpoint or an export: fp32, CPU.

    Of an export the file of weights is enough.
    """
    file = path / FILES[which]
    return _read(file) if is_there(file) else find(path).weights(which)
