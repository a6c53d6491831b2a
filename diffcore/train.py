"""deepspeed diffcore/train.py --config configs/demo.yaml [--engine.zero 2 ...]

Also ``python diffcore/train.py --config ...`` for one process. The same command resumes.
"""

from __future__ import annotations

import math
import os
import sys
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if __package__ in (None, ""):
    # Run by path: Python put diffcore/ first, whose names must not shadow installed packages.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from diffcore.config import Config
from diffcore.configure import parse
from shards import cli
from shards.cli import InputError

if TYPE_CHECKING:
    from diffcore.engine import World

HOLD_BACK = 10.0
"""Seconds that a rank other than 0 waits before it speaks: long enough for a launcher to end it."""


def main() -> None:
    config = parse(prog="train.py")

    from diffcore import engine

    world = engine.start(config.engine.threads)
    try:
        train(config, world)
    except RuntimeError as error:
        if world.size > 1 and engine.is_lost_peer(error):
            # The rank that left says why after HOLD_BACK at most, and its exit ends this one meanwhile.
            time.sleep(2 * HOLD_BACK)
        raise
    finally:
        engine.stop()


def train(config: Config, world: World) -> None:
    """One run, from its newest complete checkpoint or from nothing, to ``train.steps``."""
    import torch

    from diffcore import checkpoint, models, run_folder
    from diffcore.batches import MicroBatch, micro_batches, training_reader
    from diffcore.checkpoint import State
    from diffcore.diffusion.loss import WEIGHTS, denoising_loss
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.ema import Ema
    from diffcore.engine import Engine, barrier, gather_objects, mean_over_ranks
    from diffcore.grids import SampleGrids
    from diffcore.learning_rate import learning_rate
    from diffcore.memory import report
    from diffcore.memory.trace import Tracer
    from diffcore.monitor import Monitor

    # What is trained on what, and whether the run folder is of the same experiment.
    reader = training_reader(config)
    data = run_folder.data_record(reader.index)
    run_folder.check(config, data)

    # The network, its average and where they were: the same weights on every rank, from the seed.
    torch.manual_seed(config.seed)
    torch.use_deterministic_algorithms(config.train.deterministic)
    network = models.prepare(models.build(config.model, reader.schema, reader.size), config.engine)
    engine = Engine(network, config, world)
    barrier()  # every rank has looked at the run folder and found nothing wrong: rank 0 may write
    # Held until this process ends: one writer a run folder.
    lock = run_folder.claim(config, data) if world.main else None
    ema = Ema(engine, config.ema)
    # Rank 0 looks, all take what it found.
    folder, skipped = gather_objects(checkpoint.newest(config.run) if world.main else None, world)[0]
    start = checkpoint.load(folder, engine, ema).step if folder else 0
    if world.main:
        checkpoint.clear_after(config.run, start)

    schedule = NoiseSchedule.of(config.diffusion)
    weights_T = WEIGHTS[config.diffusion.loss_weight](schedule)
    grids = SampleGrids(config, reader.index)
    monitor = Monitor(config.run, start, config.train.steps, active=world.main)
    for line in [*skipped, *schedule.warnings]:
        monitor.say(line)
    monitor.text("config", config.to_yaml())
    monitor.say(
        f"{engine.parameters:,} parameters, {len(reader):,} images, "
        f"{world.size} ranks on {world.device.type}, batch {config.batch.size} = {engine.micro} micro "
        f"x {engine.accumulation} accumulation x {world.size} ranks, "
        f"ZeRO-{config.engine.zero}, {config.engine.precision}, from step {start}"
    )

    def loss_of(batch: MicroBatch) -> torch.Tensor:
        return denoising_loss(engine, schedule, weights_T, batch.images, batch.labels, batch.draws).mean()

    batches = micro_batches(config, reader, world, start, config.train.steps)
    # Where the memory goes: one step is followed, the others are not touched.
    tracer = Tracer(engine, ema, start, config.train.steps, active=config.memory.trace)
    total_loss, counted = torch.zeros((), device=world.device), 0
    for step in range(start, config.train.steps):
        lr = learning_rate(config, step * config.batch.size)
        tracer.begin(step)
        for _ in range(engine.accumulation):
            loss = loss_of(next(batches))
            tracer.mark("forward")
            engine.backward(loss)
            tracer.mark("backward")
            engine.step(lr)
            total_loss += loss.detach()
            counted += 1
        ema.update(step)
        tracer.mark("step")

        done = step + 1
        last = done == config.train.steps
        saving = done % config.train.checkpoint_every == 0 or last
        if done % config.train.log_every == 0 or saving:
            figures = {
                "loss": mean_over_ranks(total_loss / counted, world).item(),
                "learning_rate": lr,
                "gradient_norm": engine.gradient_norm(),
                "images_per_second": monitor.rate(counted * engine.micro * world.size),
                "samples": done * config.batch.size,
            }
            if not (math.isfinite(figures["loss"]) and math.isfinite(figures["gradient_norm"])):
                # The same on every rank. No checkpoint is written, so the newest one is still good.
                raise InputError(f"step {done}: no longer finite: {figures}; a lower optimizer.lr may help")
            monitor.scalars(done, {f"train/{name}": value for name, value in figures.items()})
            monitor.progress(done, figures["loss"], figures["images_per_second"])
            total_loss, counted = torch.zeros_like(total_loss), 0
        if done % config.sampling.every == 0 or last:
            with monitor.aside():
                grids.log(done, engine, ema, monitor)
        if saving:
            with monitor.aside():
                state = State.now(config, data, done, world)
                checkpoint.save(config.run, state, engine, ema, config.train.keep_checkpoints)

    if tracer.result is not None:
        ranks = gather_objects(tracer.result, world)
        if world.main:
            anatomy = report.measured(config, ranks)
            monitor.board(config.train.steps, dict(report.scalars(anatomy)))
            monitor.say(f"memory report: {report.save(config.run, anatomy)}")
    monitor.close()
    batches.close()
    reader.close()
    if lock is not None:
        lock.close()
    barrier()  # no rank takes the process group down while another still needs it


def script() -> NoReturn:
    """``main`` as a process: its exit code is the run's and nobody else's.

    gloo's threads outlive destroy_process_group, and now and then abort a process whose run has ended well
    while the interpreter shuts down. Everything is written and closed by then, so the process just leaves.
    """
    code: int | str | None = 0
    try:
        # All ranks find the same mistake. Rank 0 says it, and its exit ends the others; a rank that is alone
        # with its trouble speaks up a little later.
        cli.run(main, hold_back=0 if os.environ.get("RANK", "0") == "0" else HOLD_BACK)
    except SystemExit as left:
        code = left.code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    script()
