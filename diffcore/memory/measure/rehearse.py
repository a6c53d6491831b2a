"""Three real steps on random data, measured: what ``python -m diffcore.memory measure`` does."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffbase.line import say
from diffcore import models
from diffcore.config.diffusion import FIRST_DRAWS
from diffcore.config.tree import Config
from diffcore.diffusion import timesteps
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import construction, process_group
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World, gather
from diffcore.engine.staging import buffers
from diffcore.engine.step import take_step
from diffcore.memory import report, tables
from diffcore.memory.measure.trace import Tracer
from diffcore.memory.planning.plan import Data

STEPS = 3


def rehearse(config: Config, out: Path | None) -> dict[str, Any] | None:
    """Measure every rank; rank 0 shows the report, writes it into ``out`` and returns it."""
    world = process_group.start(config.run, config.engine.threads)
    try:
        ranks = gather(run(config, world), world)
        if not world.main:
            return None
        anatomy = report.measured(config, ranks)
        tables.show(anatomy)
        if out is not None:
            say(f"report: {report.save(out, anatomy)}")
        return anatomy
    finally:
        process_group.stop()


def run(config: Config, world: World) -> dict[str, Any]:
    """This rank's entry of anatomy.json, from the last of three steps."""
    step, tracer = steps_of(config, world)
    for number in range(STEPS):
        step(number, number == STEPS - 1)
    assert tracer.result is not None
    return tracer.result


def steps_of(config: Config, world: World) -> tuple[Callable[[int, bool], None], Tracer]:
    """(a function that makes step number i, followed or not; the tracer that has the result)."""
    data = Data.of(config)
    config, notes = models.settled(config, world)
    for line in notes if world.main else ():
        say(line)
    torch.manual_seed(config.seed)
    network = construction.build(lambda: models.build(config.model, data.schema, data.size), config, world)
    engine = Engine(models.prepare(network, config.engine), config, world)
    ema = Ema(engine, config.ema)
    tracer = Tracer(engine, ema, 0, STEPS)
    schedule = NoiseSchedule.of(config.diffusion)
    weights_T = WEIGHTS[config.diffusion.loss_weight](schedule).to(world.device)
    side = config.train.spans[-1].side(data.size)  # the largest
    inputs = models.example_batch(engine.micro, data.schema, side, world.device)
    images, eps = (torch.randn_like(inputs.x_BCHW) for _ in range(2))
    t_B = torch.randint(0, config.diffusion.timesteps, (engine.micro,), device=world.device)
    draws = Draws(t_B, eps, inputs.keep_B)
    on_gpu = world.device.type == "cuda" and config.diffusion.draws != FIRST_DRAWS
    waiting = buffers(engine.micro, data.size, len(data.schema), world.device) if on_gpu else []
    if config.diffusion.timestep_density != "uniform":
        waiting = [*waiting, timesteps.ends(config.diffusion, world.device)]

    def loss_of(_: None, held: list[Tensor] = waiting) -> Tensor:
        return denoising_loss(engine, schedule, weights_T, images, inputs.labels_BA, draws)

    def step(number: int, followed: bool) -> None:
        tracer.step = number if followed else -1
        tracer.begin(number)
        same = itertools.repeat(None)
        take_step(engine, ema, number, config.optimizer.lr, same, loss_of, tracer.after)
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)

    return step, tracer
