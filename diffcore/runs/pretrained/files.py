"""Files of weights: found by path, or by name among those that ship with the toolkit; checked and read."""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from diffbase.cli import InputError
from diffbase.system_error import read_bytes
from diffbase.version import VERSION
from diffcore.config.tree import PRETRAINED
from diffcore.runs.pretrained import quantize
from diffcore.runs.pretrained.card import Card, card_of

FOLDER = Path(__file__).parent
"""Of what ships: package data, in a wheel as in a checkout."""
SUFFIX = ".safetensors"
MOST = 5_000_000
"""Bytes of a file that ships."""


def names() -> list[str]:
    """What ``pretrained:NAME`` may name."""
    return sorted(file.stem for file in FOLDER.glob(f"*{SUFFIX}") if card_of(file).is_file())


def located(path: Path) -> Path | None:
    """The file of weights that a path or ``pretrained:NAME`` means; None where it means none.

    InputError for a name that does not ship.
    """
    if str(path).startswith(PRETRAINED):
        name = str(path).removeprefix(PRETRAINED)
        if name not in names():
            there = ", ".join(names()) or "none"
            raise InputError(f"{path}: no such network ships with diffcore {VERSION}; allowed: {there}")
        return FOLDER / f"{name}{SUFFIX}"
    return path if path.suffix == SUFFIX and path.is_file() else None


def averaged(file: Path, card: Card, which: str = "ema") -> dict[str, Tensor]:
    """The weights by name: fp32, CPU. InputError if the file is not what its card says, or for raw ones."""
    if which != "ema":
        raise InputError(f"{file}: holds averaged weights only; allowed: ema, not {which}")
    data = read_bytes(file, card.bytes + 1)
    if len(data) != card.bytes or hashlib.sha256(data).hexdigest() != card.sha256:
        raise InputError(f"{file}: damaged, or another's: its card, {card_of(file).name}, says other bytes")
    try:
        return quantize.restored(safetensors.torch.load(data))
    except (SafetensorError, ValueError) as error:
        raise InputError(f"{file}: no weights of ours: {error}") from error
