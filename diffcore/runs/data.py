"""The shards of a run, opened as its config says: order, cache, and what becomes of corrupt samples."""

from __future__ import annotations

import numpy as np

from diffcore.config.tree import Config
from shards.read import Batch, ShardReader
from shards.remote.cache import Cache
from shards.table import Index


def open_reader(
    config: Config,
    split: str = "train",
    *,
    order: str = "sequential",
    seed: int = 0,
    tail: str = "wrap",
    batch: int | None = None,
) -> ShardReader:
    """A split of the run's shards. Errors are those of ShardReader."""
    data = config.data
    return ShardReader(
        data.path,
        split,
        seed=seed,
        order=order,
        tail=tail,
        batch=batch,
        on_error=data.on_error,
        replace_limit=data.replace_limit,
        threads=data.threads,
        cache=Cache(data.cache, data.cache_bytes),
    )


def training_reader(config: Config) -> ShardReader:
    """The stream that a run learns from."""
    data, size = config.data, config.batch.size
    return open_reader(config, "train", order=data.order, seed=config.seed, tail=data.tail, batch=size)


def first_samples(config: Config, split: str, count: int) -> Batch:
    """The first ``count`` samples of a split in the packed order: the same ones every time."""
    with open_reader(config, split) as reader:
        return reader.read(np.arange(min(count, len(reader))))


def held_out(index: Index, least: int = 1) -> str:
    """The split val where it has ``least`` samples; without it training images have to stand in."""
    return "val" if len(index.split("val")) >= least else "train"
