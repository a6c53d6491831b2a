"""What a run is given: every rank looks at it before it waits for the others, who may look as well."""

from __future__ import annotations

from typing import Any, NamedTuple

from diffcore import models
from diffcore.config import configure, stages
from diffcore.config.deepspeed_json import settings
from diffcore.config.tree import Config
from diffcore.runs import run_folder
from diffcore.runs.data import training_reader
from diffcore.training.loggers import chosen as loggers
from shards.read import ShardReader


class Inputs(NamedTuple):
    """The config with what the run folder and the data decide in it, the open shards, and what they are."""

    config: Config
    reader: ShardReader
    data: dict[str, Any]
    """As in ``run_folder.data_record``."""


def opened(config: Config, size: int) -> Inputs:
    """The inputs of ``size`` ranks. InputError for a batch that they cannot share, loggers
    that are not installed, shards that are not there
    or do not go through the network, and a run folder of another experiment."""
    settings(config, size)
    loggers.check(config)
    config = run_folder.settled(config)
    reader = training_reader(config)
    try:
        models.check(config.model, reader.schema, reader.size)
        stages.check(config.train.stages, config.model, reader.size)
        config = configure.replace(config, "data", {"order": reader.order.name})
        data = run_folder.data_record(reader.index)
        run_folder.check(config, data)
    except BaseException:
        reader.close()
        raise
    return Inputs(config, reader, data)
