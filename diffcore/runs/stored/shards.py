"""The tensors of a checkpoint, put together from whatever ranks wrote them."""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from diffbase.system_error import NO_FILE, is_there, names_in
from diffcore.engine.ema import kind_of
from diffcore.engine.filling import Slice
from diffcore.engine.partitions import ADAM_MOMENTS, MOMENTUM
from diffcore.runs.stored.record import WEIGHTS, State, manifest
from diffcore.runs.tensors import DTYPES, DamagedError, Seal, SealedFile, Starts, open_tensors

_Take = Callable[[int, int], Tensor]
"""(first element, count) of a file's tensor."""


def _slice(file: Any, name: str, first: int, count: int) -> Tensor:
    part: Tensor = file.get_slice(name)[first : first + count]
    return part


class Shards:
    """The tensors of a checkpoint by (kind, parameter), put together from whatever ranks wrote them.

    A file that COMPLETE seals by pieces is opened when something in it is asked for, and what is read of it
    is checked. Others are mapped, as they were by the code that wrote them; files that COMPLETE does not name
    are not opened. Without a COMPLETE all shards in the folder are its.
    """

    def __init__(self, folder: Path, complete: Any = None) -> None:
        """``complete``: the tree of COMPLETE, where it was read before. InputError for a file that is no
        shard."""
        self.folder = folder
        self.opened: dict[str, SealedFile] = {}
        self.slices: list[Slice] = []
        """All that is in them, file by file, as it lies there."""
        self._parts: dict[str, list[tuple[int, int, _Take]]] = {}
        whole = complete is not None or is_there(folder / "COMPLETE")
        names = names_in(folder) if not whole else []
        found = dict.fromkeys(fnmatch.filter(names, "shard-*.safetensors"))
        self._seals: Mapping[str, Seal | None] = manifest(folder, complete) if whole else found
        for name, seal in sorted(self._seals.items()):
            if seal is not None and seal.pieces:
                for key, (start, count) in sorted(seal.places().items()):
                    self._note(key, start, count, functools.partial(self._take, name, key))
            # Or ``check`` and ``read`` miss its part:
            elif name != "state.json" and is_there(folder / name):
                self._add(folder / name)

    def _note(self, key: str, start: int, count: int, take: _Take) -> None:
        self._parts.setdefault(key, []).append((start, count, take))
        kind, _, name = key.partition("/")
        self.slices.append((kind, name, start, count))

    def _take(self, name: str, key: str, first: int, count: int) -> Tensor:
        if (file := self.opened.get(name)) is None:
            seal = self._seals[name]
            assert seal is not None
            try:
                file = self.opened[name] = SealedFile(self.folder / name, seal)
            except NO_FILE as error:
                raise DamagedError(f"{self.folder / name}: {error.strerror}") from None
        return file.read(key, first, count)

    def _add(self, path: Path) -> None:
        try:
            file = open_tensors(path)
            told = json_file.parse((file.metadata() or {}).get("starts", "").encode(), f"{path}: starts")
            starts = validated(Starts, {"starts": told}, str(path)).starts
            if starts.keys() != set(file.keys()):
                raise InputError(f"{path}: its metadata does not say where each of its tensors begins")
            for name, start in sorted(starts.items()):
                part = file.get_slice(name)
                shape = part.get_shape()
                if len(shape) != 1 or part.get_dtype() not in DTYPES:
                    raise InputError(f"{path}: {name} is {part.get_dtype()} {shape}, not flat and of floats")
                self._note(name, start, shape[0], functools.partial(_slice, file, name))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except SafetensorError as error:
            raise InputError(f"{path}: not a whole shard of a checkpoint: {error}") from error

    def check(self, state: State) -> None:
        """InputError unless every element of all that ``state`` speaks of is there, and once."""
        widths = state.identity.get("ema.posthoc")
        kept = [kind_of(w) for w in widths if isinstance(w, float | int)] if isinstance(widths, list) else []
        for name, shape in state.shapes.items():
            moments = (MOMENTUM,) if self.has(MOMENTUM, name) else ADAM_MOMENTS
            made = moments if state.updates else ()  # by the first update
            for kind in (*WEIGHTS, *made, *kept):
                end = 0
                for start, count, _ in sorted(self._parts.get(f"{kind}/{name}", []), key=lambda p: p[:2]):
                    if start != end:
                        break
                    end += count
                if end != prod(shape):
                    raise InputError(f"{self.folder}: {kind}/{name} has {end} of {prod(shape)} elements")

    def has(self, kind: str, name: str) -> bool:
        """Whether there is anything of that kind of a parameter."""
        return f"{kind}/{name}" in self._parts

    def read(self, kind: str, name: str, start: int, count: int) -> Tensor:
        """Elements ``start`` .. ``start + count`` of a parameter: fp32 [count], CPU."""
        result, found = torch.empty(count), 0
        for begin, size, take in self._parts.get(f"{kind}/{name}", []):
            low, high = max(start, begin), min(start + count, begin + size)
            if low < high:
                result[low - start : high - start] = take(low - begin, high - low)
                found += high - low
        if found != count:
            raise InputError(
                f"{self.folder}: {kind}/{name} has {found} of {count} elements wanted at {start}"
            )
        return result
