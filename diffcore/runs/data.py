"""The shards of a run, opened as its config says: order, cache, and what becomes of corrupt samples."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from diffbase.cli import InputError
from diffbase.redaction import shown
from diffcore.config.configure import replace
from diffcore.config.tree import Config
from diffcore.runs.model import TrainedModel
from shards.read import Batch, Positions, ShardReader
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
    """The stream that a run learns from. Raises the errors of ShardReader."""
    data, size = config.data, config.batch.size
    return open_reader(config, "train", order=data.order, seed=config.seed, tail=data.tail, batch=size)


def first_samples(config: Config, split: str, count: int) -> Batch:
    """The first ``count`` samples of a split in the packed order: the same ones every time."""
    with open_reader(config, split) as reader:
        return reader.read(np.arange(min(count, len(reader))))


def samples_at(config: Config, split: str, positions: Positions) -> Batch:
    """These samples of a split in the packed order. Raises the errors of ShardReader."""
    with open_reader(config, split) as reader:
        return reader.read(positions)


def held_out_of(config: Config, count: int) -> tuple[str, int]:
    """The split val, or train where val has fewer than the two that are compared; and how many of its first
    ``count`` samples are there."""
    with open_reader(config, "train") as reader:
        split = held_out(reader.index, least=2)
        return split, min(count, len(reader.index.split(split)))


def held_out_samples(config: Config, count: int) -> Batch:
    """``first_samples`` of the split that ``held_out_of`` says."""
    return first_samples(config, *held_out_of(config, count))


def with_data(model: TrainedModel, place: Path | str | None = None) -> TrainedModel:
    """The model with its shards at ``place``, a folder or URL; None: where the run's config says.

    InputError where there are none, or other ones than it was trained on.
    """
    config = model.config if place is None else replace(model.config, "data", {"path": place})
    where = shown(config.data.path)
    try:
        with open_reader(config) as reader:
            known, found = model.fingerprint, reader.fingerprint
    except InputError as error:
        raise error if place else InputError(f"{error}; if the shards have moved: --data PLACE") from None
    if found != known:
        raise InputError(
            f"{where}: other shards than {model.path} was trained on (index {found[:12]}, not {known[:12]}); "
            "give those with --data PLACE"
        )
    return dataclasses.replace(model, config=config)


def held_out(index: Index, least: int = 1) -> str:
    """The split val where it has ``least`` samples; without it training images have to stand in."""
    return "val" if len(index.split("val")) >= least else "train"
