"""Three real steps on random data, measured: what ``python -m diffcore.memory measure`` does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffcore.config import Config

STEPS = 3


def rehearse(config: Config, out: Path | None) -> dict[str, Any] | None:
    """Measure every rank; rank 0 shows the report, writes it into ``out`` and returns it."""
    from diffcore import engine as engines
    from diffcore.world import gather_objects

    world = engines.start(config.engine.threads)
    try:
        ranks = gather_objects(run(config, world), world)
        if not world.main:
            return None
        from diffcore.memory import report

        anatomy = report.measured(config, ranks)
        report.show(anatomy)
        if out is not None:
            print(f"report: {report.save(out, anatomy)}")
        return anatomy
    finally:
        engines.stop()


def run(config: Config, world: Any) -> dict[str, Any]:
    """This rank's entry of anatomy.json, from the last of three steps."""
    step, tracer = steps_of(config, world)
    for number in range(STEPS):
        step(number, number == STEPS - 1)
    assert tracer.result is not None
    return tracer.result


def steps_of(config: Config, world: Any) -> tuple[Callable[[int, bool], None], Any]:
    """(a function that makes step number i, followed or not; the tracer that has the result)."""
    import torch

    from diffcore import models
    from diffcore.diffusion.loss import WEIGHTS, denoising_loss
    from diffcore.diffusion.randomness import Draws
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.ema import Ema
    from diffcore.engine import Engine
    from diffcore.memory.plan import Data
    from diffcore.memory.trace import Tracer

    data = Data.of(config)
    torch.manual_seed(config.seed)
    network = models.prepare(models.build(config.model, data.schema, data.size), config.engine)
    engine = Engine(network, config, world)
    ema = Ema(engine, config.ema)
    tracer = Tracer(engine, ema, 0, STEPS)
    schedule = NoiseSchedule.of(config.diffusion)
    weights_T = WEIGHTS[config.diffusion.loss_weight](schedule)
    shape, on = (engine.micro, 3, data.size, data.size), world.device
    images, eps = torch.randn(shape, device=on), torch.randn(shape, device=on)
    labels = torch.zeros(engine.micro, len(data.schema), dtype=torch.int64, device=on)
    draws = Draws(
        eps_BCHW=eps,
        t_B=torch.randint(0, config.diffusion.timesteps, (engine.micro,), device=on),
        keep_B=torch.ones(engine.micro, dtype=torch.bool, device=on),
    )

    def step(number: int, followed: bool) -> None:
        tracer.step = number if followed else -1
        tracer.begin(number)
        for _ in range(engine.accumulation):
            loss = denoising_loss(engine, schedule, weights_T, images, labels, draws).mean()
            tracer.mark("forward")
            engine.backward(loss)
            del loss
            tracer.mark("backward")
            engine.step(config.optimizer.lr)
        ema.update(number)
        tracer.mark("step")
        if on.type == "cuda":
            torch.cuda.synchronize(on)

    return step, tracer
