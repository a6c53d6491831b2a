"""A run that is open on this rank: all that it consists of, as its config and its folder say.

``run.py`` beside it says what is done with it.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from diffbase import ledger, output
from diffbase.explain import checked
from diffbase.redaction import without_url_secrets
from diffcore import models
from diffcore.config.often import seconds_of
from diffcore.config.tree import Config
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import construction
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.gradients.outcome import Outcome
from diffcore.engine.ranks import World, barrier
from diffcore.memory.measure.trace import Tracer
from diffcore.models.flops import peak_flops
from diffcore.runs import checkpoint, run_folder
from diffcore.runs.averages import snapshots
from diffcore.runs.saver import Saver
from diffcore.runs.source import start_from
from diffcore.training.batches import micro_batches
from diffcore.training.grids import SampleGrids
from diffcore.training.guards.progress import Progress
from diffcore.training.guards.stopping import Agreement, StopFlag
from diffcore.training.guards.streak import Streak
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.inputs import Inputs, opened
from diffcore.training.judging import Judging, no_judge
from diffcore.training.loggers.chosen import trackers
from diffcore.training.loggers.monitor import Monitor
from diffcore.training.meters import length
from diffcore.training.meters.costs import Costs, logged
from diffcore.training.meters.loss_meter import LossMeter
from diffcore.training.meters.pace import Pace
from diffcore.training.meters.step_clock import StepClock
from diffcore.training.meters.step_profile import StepProfile
from diffcore.training.objective import Objective, Work
from diffcore.training.taking_up import Checkpoints, TakenUp
from diffcore.training.validation import Validation


class OpenRun:
    """One run on this rank, after ``step`` steps. A context manager: at the end all is written and closed."""

    def __init__(
        self,
        config: Config,
        world: World,
        stop: StopFlag,
        watchdog: Watchdog,
        judge: Judging = no_judge,
        inputs: Inputs | None = None,
    ) -> None:
        """``judge`` makes the probe whose figures stand beside the validation loss; ``inputs`` of the config,
        if they are open already."""
        self.world, self._stop, self.watchdog = world, stop, watchdog
        self.costs = Costs(world)
        self._open = contextlib.ExitStack()
        self._lost: set[str] = set()

        # What is trained on what, and whether the run folder is of the same experiment.
        config, self.reader, self.data = inputs or opened(config, world.size)
        self._open.callback(self.reader.close)
        # What auto stands for: the run's config.yaml says it.
        config, self._notes = models.settled(config, world)
        self.config = config

        torch.use_deterministic_algorithms(config.train.deterministic)
        # Or DeepSpeed's buckets, of which a step uses a part, would be written whole with NaN every step.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        # A judge that will not do is told before the run folder is made.
        self.probe = judge(config, self.reader.index, world)

        config, measured, line = length.fixed(config, world, watchdog)
        self._notes = [*self._notes, *([line] if line else [])]
        self.config, watchdog.steps = config, config.train.steps

        # The network: the same weights on every rank, from the seed.
        torch.manual_seed(config.seed)
        make = partial(models.build, config.model, self.reader.schema, self.reader.size)
        network = models.prepare(construction.build(make, config, world), config.engine)
        self.engine = Engine(network, config, world)
        self.schedule = NoiseSchedule.of(config.diffusion)
        self._objective = Objective(config, self.reader.size, world.device)
        barrier()  # every rank has looked at the run folder and found nothing wrong: rank 0 may write
        # Held until this process ends: one writer per run folder.
        lock = run_folder.claim(config, self.data) if world.main else None
        self._open.enter_context(lock or contextlib.nullcontext())
        if world.main and measured is not None:
            length.keep(config.run, measured)

        # Where it was: rank 0 looks, all take what it found.
        self.step, self.progress = 0, Progress()
        self.measured: dict[str, float] = {}
        self._unsettled: tuple[Outcome, Tensor] | None = None
        self._saved: int | None = None
        self.streak = Streak()
        self._best_before: float | None = None
        self._checkpoints = Checkpoints(config.run, world, watchdog)
        folder, skipped = self._checkpoints.newest()
        if folder is None and config.init_from is not None:
            start_from(self.engine, config.init_from, config.init_weights)
        self.ema = Ema(self.engine, config.ema)
        taken, skipped = self._checkpoints.take_up(folder, skipped, self.engine, self.ema)
        if taken is not None:
            self._follow(taken)
        if world.main:
            checkpoint.clear_after(config.run, self.step)
            snapshots.clear_after(config.run, self.step)
            if problem := checkpoint.clear_best(config.run):
                skipped.append(problem)
        ours = lock.check if lock else lambda: None
        self.saver = Saver(config.run, config.train.keep_checkpoints, world, ours)

        self.agreement = Agreement(world, seconds_of(config.train.checkpoint_every))
        self.meter = LossMeter(config.diffusion.timesteps, world.device)
        self.clock, self.pace = StepClock(world.device), Pace(world)
        self.engine.watch_communication(lambda: self.clock.aside("communication"))
        self.validation = Validation(config, self.reader.index, world, self.engine.micro)
        # Where the memory goes: one step is followed, of the largest images; the others are not touched.
        first = max(self.step, config.train.spans[-1].first)
        self.tracer = Tracer(self.engine, self.ema, first, config.train.steps, active=config.memory.trace)
        self._open.callback(self.tracer.close)
        self.profile = StepProfile(config, world)
        self.grids = SampleGrids(config, self.reader.index, world)
        spent_before = logged(config.run) if world.main else 0.0  # before the monitor drops lines
        board, others = "tensorboard" in config.monitor.loggers, trackers(config) if world.main else []
        self.monitor = Monitor(config.run, self.step, config.train.steps, world.main, board, others)
        self._open.callback(self.monitor.close)
        self._open.callback(lambda: self._write_profile(self.profile.close))
        self._work = Work(config, self.reader.schema, self.reader.size)
        if taken is not None:
            state = taken.state
            self.costs.take_up(state.spent, state.samples, self._work.flops(0, state.step))
        self.costs.lived(spent_before)
        self._peak = peak_flops(world.device, config.engine.precision)
        self._batches = micro_batches(config, self.reader, world, self.step, config.train.steps)
        self._open.callback(lambda: self._batches.close())
        self._greet(skipped, taken)

    def _greet(self, skipped: list[str], taken: TakenUp | None) -> None:
        c, e = self.config, self.engine
        judged = self.probe.notes if self.probe else []
        for line in [*skipped, *self.schedule.warnings, *self._notes, *self.profile.notes, *judged]:
            self.monitor.say(line)
        for line in skipped:
            if "no COMPLETE" not in line:  # what a kill cut off is no damage
                self._record("damaged", why=line)
        self.monitor.text("config", without_url_secrets(c.to_yaml()))
        self.monitor.say(
            f"{e.parameters:,} parameters, {len(self.reader):,} images, "
            f"{self.world.size} ranks on {self.world.device.type}, batch {c.batch.size} = {e.micro} micro "
            f"x {e.accumulation} accumulation x {self.world.size} ranks, "
            f"ZeRO-{c.engine.zero}, {c.engine.precision}, from step {self.step}"
        )
        self._record(
            "start", steps=c.train.steps, world=self.world.size, pid=os.getpid(), host=socket.gethostname()
        )
        self._record("loaded", step=self.step, checkpoint=taken.folder.name if taken else None)

    def __enter__(self) -> Self:
        self.watchdog.beat(self.step)
        self._first = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if error is None:
                with self.watchdog.section("save"):
                    self.saver.wait()
                last = self.step == self.config.train.steps
                self._record_lost_log()
                self._record("done" if last else "preempted", step=self.step)
                barrier()  # no rank takes the process group down while another still needs it

    def _record(self, event: str, **fields: Any) -> None:
        if self.world.main and (error := ledger.note(self.config.run, event, **fields)):
            self.monitor.lost("events.jsonl", error)

    def _record_lost_log(self) -> None:
        """Once for each of the process's streams that nobody can read any more; rank 0's."""
        for stream, why in output.lost().items():
            if stream not in self._lost:
                self._lost.add(stream)
                self._record("log_lost", step=self.step, why=f"{stream}: {why}")

    def _write_profile(self, end: Callable[[], Sequence[str]]) -> None:
        with self.monitor.writing("the profile"):
            for line in end():
                self.monitor.say(line)

    def _follow(self, taken: TakenUp) -> None:
        """Go on from where a checkpoint was made."""
        state = taken.state
        self.step = state.step
        self.progress = checked(Progress, state.progress, f"{taken.folder / 'state.json'}: progress")
        self._saved, self.streak = state.step, Streak()
