"""Many images from a trained run, shared out over the ranks of a job."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from diffbase.line import say
from diffbase.machine import launcher
from diffcore.config.tree import Sampling
from diffcore.engine import process_group
from diffcore.engine.ranks import World, gather, gather_arrays, one_device
from diffcore.runs.draw import choose_labels
from diffcore.runs.model import TrainedModel

BATCH = 128


def start(folder: Path) -> World:
    """The job's ranks as the launcher says; one process alone needs no process group and no DeepSpeed.

    ``folder``: one that all ranks see and this user may write into, the run's as a rule.
    """
    if launcher.place().size > 1:
        return process_group.start(folder)
    return World(0, 1, 0, one_device())


@contextmanager
def ranks(folder: Path) -> Iterator[World]:
    """The job's ranks for as long as the block runs; no rank leaves before all are done. See ``start``."""
    world = start(folder)
    try:
        yield world
        gather(None, world)
    finally:
        process_group.stop()


def teller(world: World) -> Callable[[str], None]:
    """Print a line, on rank 0."""
    return say if world.main else lambda line: None


def draw(
    model: TrainedModel,
    labels_NA: NDArray[np.int64],
    sampling: Sampling,
    seed: int,
    world: World,
    batch: int = BATCH,
    positions_N: NDArray[np.int64] | None = None,
) -> NDArray[np.uint8]:
    """Images for ``labels``, whole on every rank: uint8 [N, H, W, 3]. A collective.

    Image i is the same whatever the number of ranks and the batch, but for rounding.
    """
    places_N = np.arange(len(labels_NA)) if positions_N is None else positions_N
    mine = np.array_split(np.arange(len(labels_NA)), world.size)[world.rank]
    images = model.draw(
        torch.from_numpy(labels_NA[mine]), sampling, seed, batch, positions=places_N[mine].tolist()
    )
    return np.concatenate(gather_arrays(images, world))


def asked_labels(model: TrainedModel, count: int, seed: int) -> NDArray[np.int64]:
    """Labels to ask for, each attribute uniform over its variants: int64 [count, A]."""
    labels: NDArray[np.int64] = choose_labels(model.schema, {}, seed, count).numpy()
    return labels


def settings(sampling: Sampling) -> dict[str, Any]:
    """What a record keeps of the sampler's settings."""
    return sampling.model_dump(mode="json", exclude={"every", "count"})
