"""Where weights come from: a run folder, one of its checkpoints, or an export."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.runs import checkpoint
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
        return tuple(Attribute(a["name"], a["variants"]) for a in self.data["schema"])

    @property
    def size(self) -> int:
        """Edge of the images, pixels."""
        return int(self.data["size"])

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the shards that the network learned from."""
        return str(self.data["fingerprint"])

    def weights(self, which: str) -> dict[str, Tensor]:
        """``ema`` or ``raw`` weights by name: fp32, CPU."""
        return load_weights(self.folder, which)


def find(path: Path, which: str = "newest") -> Source:
    """What is at ``path``; InputError where it is none of the three.

    ``which``, of a run folder: newest, best or a step.
    """
    if (path / DATA).exists():
        return Source(path, config_of(path), json.loads((path / DATA).read_text()), _step_of(path))
    folder = path
    if not (path / "state.json").exists():
        config_of(path)
        folder = choose(path, which)
    state = checkpoint.read_state(folder)
    return Source(folder, config_of(folder.parents[1]), state.data, state.step)


def _step_of(export: Path) -> int:
    with safe_open(export / FILES["ema"], framework="pt") as file:
        return int((file.metadata() or {}).get("step", 0))


def config_of(run: Path) -> Config:
    """The config of a run folder or an export. InputError where it is none."""
    if not (run / "config.yaml").exists():
        raise InputError(f"{run}: not a run folder (no config.yaml)")
    return configure.load(run / "config.yaml")


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
        folder = checkpoint.folder_of(run) / f"step-{int(which):08d}"
    else:
        raise InputError(f"--checkpoint {which}: allowed are newest, best or a step")
    problem = checkpoint.check(folder)
    if problem is not None:
        there = ", ".join(str(int(path.name[5:])) for path in checkpoint.complete(run)) or "none"
        raise InputError(f"{folder}: {problem}; complete checkpoints: {there}")
    return folder


def load_weights(source: Path, which: str) -> dict[str, Tensor]:
    """``ema`` or ``raw`` weights by name of a run folder, a checkpoint or an export: fp32, CPU."""
    if (source / FILES[which]).exists():
        try:
            return load_file(source / FILES[which])
        except SafetensorError as error:
            raise InputError(f"{source / FILES[which]}: not a whole safetensors file: {error}") from error
    if (source / "state.json").exists():
        problem = checkpoint.check(source)
        if problem is not None:
            raise InputError(f"{source}: {problem}")
        folder = source
    elif (source / "config.yaml").exists():
        folder = choose(source, "newest")
    else:
        raise InputError(f"{source}: no run folder, checkpoint or export")
    return checkpoint.read_weights(folder, "weights" if which == "raw" else which)
