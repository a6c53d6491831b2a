"""What a checkpoint's folder says of itself: state.json, COMPLETE, and the names of its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import checked, validated
from diffbase.formats import json_file
from diffcore.engine.partitions import ADAM_MOMENTS
from diffcore.runs.tensors import Count, Name, Seal

VERSION = 2
WEIGHTS = ("weights", "ema")
KINDS = (*WEIGHTS, *ADAM_MOMENTS)
"""Of a parameter; of one that is a matrix to Muon MOMENTUM takes the place of the moments."""
LARGEST = 256 << 20
"""Bytes of a state.json or a COMPLETE: a million parameters have their shapes in less."""

Finite = Count | Annotated[float, Field(strict=True, allow_inf_nan=False)]  # a whole number stays one


@dataclass(frozen=True)
class State:
    """What a checkpoint says of itself. ``version`` counts the changes of this schema."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: Count
    samples: Count
    updates: Count
    """Steps that changed the weights: all but those that a guard left out."""
    identity: dict[str, Any]
    data: dict[str, Any]
    """``run_folder.DataRecord``."""
    world: Annotated[int, Field(strict=True, ge=1, le=10**6)]
    zero: Annotated[int, Field(strict=True, ge=0, le=3)]
    precision: Annotated[str, Field(max_length=100)]
    code: Annotated[str, Field(max_length=1000)]
    shapes: Annotated[dict[Name, Annotated[list[Count], Field(max_length=16)]], Field(max_length=10**6)]
    """Of every parameter, by name."""
    progress: dict[str, Any] = field(default_factory=dict)
    """What the learning rate and the guards remember (``diffcore.training.guards.progress``)."""
    scaler: Annotated[dict[Name, Finite], Field(max_length=100)] = field(default_factory=dict)
    """fp16's loss scale."""
    spent: Annotated[dict[Name, Finite], Field(max_length=100)] = field(default_factory=dict)
    """What the run has cost so far (``diffcore.training.meters.costs``); none in older ones."""
    version: Count = VERSION


class OtherVersionError(InputError):
    """A whole checkpoint of another version of the code: neither damaged nor to be passed over."""


class Manifest(BaseModel):
    """COMPLETE, as the one field ``files``."""

    files: Annotated[dict[Name, Seal], Field(max_length=10**6 + 1)]


def shard_name(rank: int, world: int) -> str:
    """File name of shard ``rank`` of ``world``."""
    return f"shard-{rank:05d}-of-{world:05d}.safetensors"


def manifest(folder: Path, tree: Any = None) -> dict[str, Seal]:
    """What COMPLETE says, whose ``tree`` was read before, or is now. InputError if it is none, or names
    anything but state.json and the shards."""
    path = folder / "COMPLETE"
    tree = json_file.read(path, most=LARGEST) if tree is None else tree
    files = validated(Manifest, {"files": tree}, str(path)).files
    if "state.json" not in files:
        raise InputError(f"{path}: does not name state.json")
    for name in files:
        if Path(name).name != name or "\0" in name:
            raise InputError(f"{path}: names {name!r}, which is no file's plain name")
    world = len(files) - 1
    wrong = sorted(files.keys() - {"state.json", *(shard_name(rank, world) for rank in range(world))})
    if wrong:
        raise InputError(f"{path}: names {wrong[0]!r}, which is no shard of {world}")
    return files


def read_state(folder: Path, tree: Any = None) -> State:
    """A checkpoint's state.json, whose ``tree`` was read before, or is now. InputError if it is none;
    OtherVersionError for another one's schema."""
    path = folder / "state.json"
    tree = json_file.read(path, most=LARGEST) if tree is None else tree
    version = tree.get("version") if isinstance(tree, dict) else None
    if not isinstance(version, int):
        raise InputError(f"{path}: not a checkpoint's state: no version in it")
    if version != VERSION:
        raise OtherVersionError(f"{folder}: checkpoint version {version}, this code reads {VERSION}")
    return checked(State, tree, str(path))
