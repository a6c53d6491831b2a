"""Measuring one training step: which tensors hold how many bytes, by category, at two moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from diffcore.ema import Ema
from diffcore.engine import Engine
from diffcore.memory.nvml import Total, process_total

CATEGORIES = ("parameters", "buckets", "masters", "optimizer", "gradients", "ema", "activations")


@dataclass(frozen=True)
class Moment:
    """Bytes by category at one moment of a step on one rank, and the process's total then."""

    name: str
    bytes: dict[str, int]
    total: Total

    @property
    def rest(self) -> int:
        """What no category explains: libraries, interpreter, allocator, data, temporaries."""
        return self.total.bytes - sum(self.bytes.values())


@dataclass(frozen=True)
class Anatomy:
    """One rank's measurement of one micro batch."""

    rank: int
    parameters: int
    micro_batch: int
    moments: list[Moment]

    def as_json(self) -> dict[str, Any]:
        tree = asdict(self)
        for moment, entry in zip(self.moments, tree["moments"], strict=True):
            entry["bytes"]["rest"] = moment.rest
        return tree


def storage_bytes(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Address -> bytes of the distinct storages behind ``tensors``; views count once."""
    storages = (t.untyped_storage() for t in tensors if t.device.type != "meta")
    return {s.data_ptr(): s.nbytes() for s in storages if s.nbytes()}


def measure(engine: Engine, ema: Ema, micro_batch: int, forward: Callable[[], Tensor]) -> Anatomy:
    """Run ``forward`` and its backward once more, without a step, and account for the storages.

    Activations are what autograd saves for the backward pass, distinct storages without parameters and
    gradients. A collective; the gradients that it leaves behind are not for training.
    """
    held = storage_bytes(t for tensors in engine.memory().values() for t in tensors)
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update({a: n for a, n in storage_bytes([tensor]).items() if a not in held})
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    moments = [_moment("after forward", engine, ema, saved)]
    engine.backward(loss)
    moments.append(_moment("after backward", engine, ema, {}))
    return Anatomy(engine.world.rank, engine.parameters, micro_batch, moments)


def _moment(name: str, engine: Engine, ema: Ema, activations: dict[int, int]) -> Moment:
    counted: set[int] = set()
    sizes = {}
    groups = engine.memory() | {"ema": ema.shards}
    for category in CATEGORIES[:-1]:
        storages = storage_bytes(groups[category])
        sizes[category] = sum(n for address, n in storages.items() if address not in counted)
        counted |= set(storages)
    sizes["activations"] = sum(n for address, n in activations.items() if address not in counted)
    if engine.world.device.type == "cuda":
        torch.cuda.synchronize(engine.world.device)
    return Moment(name, sizes, process_total(engine.world.device))
