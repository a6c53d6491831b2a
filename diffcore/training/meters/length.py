"""How many steps a run of ``train.minutes`` has: fixed when it begins, from the speed of the machine there.

The steps are made once more for it, with a network of their own that is thrown away: the run's begins from
its seed afterwards, and everything is as if ``train.steps`` had been given, so no rate depends on a clock.
What was decided is kept in the run folder; a resume, on whatever machine, does not measure again.
"""

from __future__ import annotations

import gc
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import write_json
from diffbase.formats import json_file
from diffbase.system_error import is_there
from diffcore import models
from diffcore.config.configure import replace
from diffcore.config.tree import Config
from diffcore.engine import construction
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, from_rank
from diffcore.engine.step import take_step
from diffcore.runs.data import training_reader
from diffcore.training.batches import micro_batches
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.objective import Objective

FILE = "length.json"
WARM = 3
"""Steps before those that are timed: the first ones build and allocate."""
LEAST = 5
"""Steps that are timed at least."""
SECONDS, SHARE = 10.0, 0.05
"""They are timed for so long, or for this share of ``train.minutes`` where that is less."""
FEWEST = 10
"""Steps of the shortest run."""
MOST = 2**53


class Length(BaseModel):
    """length.json."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    minutes: Annotated[float, Field(gt=0)]
    """``train.minutes`` when it was measured."""
    seconds_per_step: Annotated[float, Field(gt=0)]
    ranks: Annotated[int, Field(ge=1)]
    """That shared the steps."""

    def steps(self, minutes: float) -> int:
        """Steps of a run of ``minutes`` at that speed: the same whenever it is asked."""
        return int(min(MOST, max(FEWEST, 60 * minutes / self.seconds_per_step)))


def fixed(config: Config, world: World, watchdog: Watchdog) -> tuple[Config, Length | None, str | None]:
    """The config with its steps; what they follow from, for ``keep``, where train.minutes says them; and a
    line that says so. A collective. InputError for a damaged record."""
    minutes = config.train.minutes
    if minutes is None:
        return config, None, None
    told, refused = None, None
    if world.main:  # the others might look a moment later, when it is there
        try:
            found = kept(config.run)
            told = found.model_dump() if found is not None else None
        except InputError as error:
            refused = str(error)
    told, refused = from_rank([told, refused], world)
    if refused is not None:
        raise InputError(refused)
    how = f"as measured when it began ({FILE})"
    if told is None:
        with watchdog.section("measuring its speed"):
            began, speed = time.monotonic(), seconds_per_step(config, world)
        took = time.monotonic() - began
        told = Length(minutes=minutes, seconds_per_step=speed, ranks=world.size).model_dump()
        how = f"measured in {took:.0f} s and kept in {FILE}"
    length = Length(**told)
    steps = length.steps(minutes)
    line = f"train.minutes {minutes:g}: {steps:,} steps of {length.seconds_per_step:.3g} s, {how}"
    return replace(config, "train", {"steps": steps}), length, line


def kept(run: Path) -> Length | None:
    """What a run's folder has, if it was ever measured. InputError for a damaged record."""
    path = run / FILE
    return validated(Length, json_file.read(path, most=10_000), str(path)) if is_there(path) else None


def keep(run: Path, length: Length) -> None:
    """Write it into the run folder, which this process has claimed, unless it is there."""
    if not is_there(run / FILE):
        write_json(run / FILE, length.model_dump())


def seconds_per_step(config: Config, world: World) -> float:
    """Of a training step on this machine, by rank 0's clock, the same on every rank. A collective.

    Reading, forward, backward, optimizer and average, as a run makes them, on its first batches; without log
    lines, validations, drawing and checkpoints.
    """
    try:
        return _timed(config, world)
    finally:  # before the run's own engine is made
        gc.collect()
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def _timed(config: Config, world: World) -> float:
    assert config.train.minutes is not None
    enough = min(SECONDS, SHARE * 60 * config.train.minutes)
    with training_reader(config) as reader, ExitStack() as stack:
        torch.manual_seed(config.seed)
        make = partial(models.build, config.model, reader.schema, reader.size)
        engine = Engine(models.prepare(construction.build(make, config, world), config.engine), config, world)
        stack.callback(engine.close)
        ema, mean, made = Ema(engine, config.ema), 0.0, 0

        def make_steps(count: int) -> None:
            nonlocal made
            for _ in range(count):
                take_step(engine, ema, made, config.optimizer.lr, batches, loss_of, lambda part: None)
                made += 1
            if world.device.type == "cuda":
                torch.cuda.synchronize(world.device)

        for share, part in _parts(config):
            objective = Objective(part, reader.size, world.device)
            batches, loss_of = (
                micro_batches(part, reader, world, 0, part.train.steps),
                partial(objective, engine),
            )
            try:
                make_steps(WARM)
                first, began, more, took, speed = made, time.monotonic(), 1, 0.0, 0.0
                while made < first + LEAST or took < share * enough:
                    make_steps(more)
                    took = float(from_rank(time.monotonic() - began, world))
                    speed = max(took, 1e-6) / (made - first)
                    more = int(min(100, max(1, (share * enough - took) / speed / 2)))
            finally:
                batches.close()
            mean += share * speed
        return mean


def _parts(config: Config) -> list[tuple[float, Config]]:
    """Of the run's stages: the share of its steps, and the config of an endless run of such steps."""
    parts, before, endless = [], 0.0, MOST // config.batch.size
    for stage in (*config.train.stages, None):
        share = float(stage.until) if stage else 1.0
        stages = (stage.model_copy(update={"until": endless}),) if stage else ()
        train = config.train.model_copy(update={"steps": endless, "minutes": None, "stages": stages})
        parts.append((share - before, config.model_copy(update={"train": train})))
        before = share
    return parts
