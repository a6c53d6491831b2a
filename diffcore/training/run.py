"""A training run as an object: what the loop in ``train.py`` does in each of its lines.

Everything that all ranks must decide alike (to stop, to leave a step out, to roll back) is decided from
figures that are the same on all of them.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from diffbase import ledger, output
from diffbase.cli import InputError
from diffbase.exits import RunFailedError
from diffbase.explain import checked
from diffbase.redaction import without_url_secrets
from diffcore import models
from diffcore.config.often import seconds_of
from diffcore.config.tree import Config
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine import construction
from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.gradients.outcome import Outcome
from diffcore.engine.ranks import World, barrier, from_rank, gather, gather_to_main
from diffcore.engine.step import take_step
from diffcore.memory import report
from diffcore.memory.measure.trace import Tracer
from diffcore.memory.measure.usage import usage
from diffcore.models.flops import peak_flops, training_flops
from diffcore.runs import checkpoint, run_folder
from diffcore.runs.averages import snapshots
from diffcore.runs.saver import Saver, state_now
from diffcore.runs.source import start_from
from diffcore.runs.tensors import DamagedError
from diffcore.training.batches import MicroBatch, micro_batches
from diffcore.training.grids import SampleGrids
from diffcore.training.guards.progress import Progress
from diffcore.training.guards.stopping import Agreement, StopFlag
from diffcore.training.guards.streak import Streak, last_good
from diffcore.training.guards.watchdog import Watchdog
from diffcore.training.inputs import Inputs, opened
from diffcore.training.judging import Judging, no_judge
from diffcore.training.learning_rate import learning_rate
from diffcore.training.loggers.chosen import trackers
from diffcore.training.loggers.monitor import Monitor
from diffcore.training.meters.loss_meter import LossMeter
from diffcore.training.meters.pace import Pace, Taken
from diffcore.training.meters.step_clock import StepClock
from diffcore.training.profile import StepProfile
from diffcore.training.validation import Validation

LARGER_IS_BETTER = ("quality/fidelity",)
"""Metrics of which train.best wants the largest value; of all others the lowest."""


class Training:
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

        # The network: the same weights on every rank, from the seed.
        torch.manual_seed(config.seed)
        make = partial(models.build, config.model, self.reader.schema, self.reader.size)
        network = models.prepare(construction.build(make, config, world), config.engine)
        self.engine = Engine(network, config, world)
        self.schedule = NoiseSchedule.of(config.diffusion)
        self._weights_T = WEIGHTS[config.diffusion.loss_weight](self.schedule).to(world.device)
        barrier()  # every rank has looked at the run folder and found nothing wrong: rank 0 may write
        # Held until this process ends: one writer per run folder.
        lock = run_folder.claim(config, self.data) if world.main else None
        self._open.enter_context(lock or contextlib.nullcontext())

        # Where it was: rank 0 looks, all take what it found.
        self.step, self.progress = 0, Progress()
        self.measured: dict[str, float] = {}
        self._unsettled: tuple[Outcome, Tensor] | None = None
        self._saved: int | None = None
        self.streak = Streak()
        self._best_before: float | None = None
        self._damaged: dict[str, str] = {}
        folder, skipped = self._newest()
        if folder is None and config.init_from is not None:
            start_from(self.engine, config.init_from, config.init_weights)
        self.ema = Ema(self.engine, config.ema)
        while folder is not None and not self._load(folder):
            folder, skipped = self._newest()
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
        # Where the memory goes: one step is followed, the others are not touched.
        self.tracer = Tracer(self.engine, self.ema, self.step, config.train.steps, active=config.memory.trace)
        self._open.callback(self.tracer.close)
        self.profile = StepProfile(config, world)
        self.grids = SampleGrids(config, self.reader.index, world)
        board, others = "tensorboard" in config.monitor.loggers, trackers(config) if world.main else []
        self.monitor = Monitor(config.run, self.step, config.train.steps, world.main, board, others)
        self._open.callback(self.monitor.close)
        self._open.callback(lambda: self._write_profile(self.profile.close))
        self._flops = training_flops(config.model, self.reader.schema, self.reader.size)
        self._peak = peak_flops(world.device, config.engine.precision)
        self._batches = micro_batches(config, self.reader, world, self.step, config.train.steps)
        self._open.callback(lambda: self._batches.close())
        self._greet(skipped, folder)

    def _greet(self, skipped: list[str], folder: Any) -> None:
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
        self._record("loaded", step=self.step, checkpoint=folder.name if folder else None)

    def __enter__(self) -> Training:
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

    # --- a step -----------------------------------------------------------------------------------------

    def _loss_of(self, batch: MicroBatch) -> Tensor:
        """Losses of a micro batch's samples: [B]."""
        given = batch.images, batch.labels, batch.draws
        loss_B = denoising_loss(self.engine, self.schedule, self._weights_T, *given)
        self.meter.add(loss_B, batch.draws.t_B)
        return loss_B

    def _after(self, part: str) -> None:
        """A part of the step has ended."""
        self.tracer.after(part)
        self.clock.lap(part, on_cpu=part == "data")
        if part == "backward":  # queued: now the host may wait for what the step before it came to
            self.settle()

    def learn(self) -> None:
        """One optimizer step, on the next global batch."""
        self._lr = self._learning_rate()
        self.profile.before(self.step + 1)
        self.measured = {}  # of one step: neither a later log line nor a later checkpoint is to have it
        self.tracer.begin(self.step)
        outcome, loss_B = take_step(
            self.engine, self.ema, self.step, self._lr, self._batches, self._loss_of, self._after
        )
        self.step += 1
        self._write_profile(lambda: self.profile.after(self.step))
        self._unsettled = outcome, loss_B.detach().isfinite().all()
        if outcome.known:
            self.settle()
        if self._first:
            self._record("first_step", step=self.step)
            self._first = False
        self.watchdog.beat(self.step)

    def settle(self) -> None:
        """Take in whether the last step was left out. A collective where it was.

        Under ZeRO-0 the device decides that; the next step asks when its backward is queued, and what looks
        at the run between two steps settles first. RunFailedError where too many were left out in a row.
        """
        if self._unsettled is None:
            return
        (outcome, loss_finite), self._unsettled = self._unsettled, None
        self.progress.stepped(outcome.applied())
        if outcome.applied():
            self.streak.on = False
        else:
            self._skipped(loss_finite)

    def _write_profile(self, end: Callable[[], Sequence[str]]) -> None:
        with self.monitor.writing("the profile"):
            for line in end():
                self.monitor.say(line)

    def _learning_rate(self) -> float:
        return learning_rate(self.config, self.step * self.config.batch.size) * self.progress.lr_factor

    def _skipped(self, loss_finite: Tensor) -> None:
        """The gradient was not finite, and no rank has stepped."""
        bad = gather(not bool(loss_finite), self.world)
        ranks = [rank for rank, is_bad in enumerate(bad) if is_bad]
        where = f"loss of rank {', '.join(map(str, ranks))}" if ranks else "gradient"
        in_row, most = self.progress.skips_in_row, self.config.guards.max_skips
        line = (
            f"step {self.step}: {where} not finite, left out ({in_row} in a row, {self.progress.skips} ever)"
        )
        self._record("skipped_step", step=self.step, why=where)
        searching = not ranks and self.engine.loss_scale != 1  # fp16's loss scale, which log() shows
        self.streak.on |= not searching
        if in_row >= most:
            raise self._failed(f"{line}; guards.max_skips {most} reached")
        if not searching:
            self.monitor.say(line)

    def _failed(self, why: str) -> RunFailedError:
        with contextlib.suppress(OSError):  # of the disk, which is not what ends the run
            self.saver.settle()  # the last good one may just be written
        return RunFailedError(f"{why}. {last_good(self.config.run, self.step, self.progress.skips_in_row)}")

    def asked_to_stop(self) -> bool:
        """Whether any rank got a signal: the same on all, one step after it came."""
        return bool(self.agreement.of(self._stop.signal))

    # --- what is done now and then ------------------------------------------------------------------------

    def log(self) -> bool:
        """Figures since the last call, to TensorBoard, metrics.jsonl and the screen. A collective.

        Returns False where the loss has exploded (``guards.explosion``).
        """
        self.settle()
        c, w = self.config, self.world
        seconds = self.clock.read()
        steps = self.monitor.steps_since(self.step)
        self.pace.add(seconds, steps)
        if not steps:
            return True
        losses = self.meter.read()
        rate = steps * c.batch.size / max(sum(seconds.values()), 1e-9)
        work, system = rate * self._flops / w.size, usage(w.device)
        figures = {f"train/{name}": value for name, value in losses.items()} | {
            "train/learning_rate": self._lr,
            "train/gradient_norm": self.engine.gradient_norm(),
            "train/images_per_second": rate,
            "train/samples": self.step * c.batch.size,
            "train/skipped_steps": self.progress.skips,
            "train/tflops_a_rank": work / 1e12,
            **{f"time/{part}_ms": value / steps * 1e3 for part, value in seconds.items()},
            "time/data_stall": seconds["data"] / max(sum(seconds.values()), 1e-9),
            "memory/process_mib": (system.own or system.used) / 2**20,
            **self.measured,
        }
        if c.engine.precision == "fp16":
            figures["train/loss_scale"] = self.engine.loss_scale
        if self._peak:
            figures["train/mfu"] = work / self._peak
        self.monitor.scalars(self.step, figures)
        self.monitor.progress(self.step, figures, len(self.reader))
        self._record_lost_log()
        exploded = self.progress.exploded(losses["loss"], c.guards)
        self.clock.start()
        return not exploded

    def _newest(self) -> tuple[Path | None, list[str]]:
        """``checkpoint.newest`` as rank 0 finds it, on every rank, without those that were found damaged. A
        collective.

        InputError where there are complete ones and none can be loaded: to begin anew would remove them.
        """
        run, world = self.config.run, self.world
        folder, skipped, refused = None, list[str](), ""
        if world.main:
            try:
                folder, skipped = checkpoint.newest(run, whole=False, damaged=self._damaged)
                if folder is None and checkpoint.complete(run):
                    refused = (
                        f"{checkpoint.folder_of(run)}: none can be loaded ({'; '.join(skipped)}); "
                        "mend one, or move the folder away to begin anew"
                    )
            except InputError as error:
                refused = str(error)
        name, skipped, refused = from_rank([folder and folder.name, skipped, refused], world)
        if refused:
            raise InputError(refused)
        return name and checkpoint.folder_of(run) / name, skipped

    def roll_back(self) -> None:
        """Go back to the newest complete checkpoint with a lower learning rate. A collective."""
        c = self.config
        self.settle()
        self.saver.settle()
        folder, _ = self._newest()
        why = f"step {self.step}: the loss is above {c.guards.explosion:g} times its recent median"
        if folder is None or self.progress.rollbacks >= c.guards.max_rollbacks:
            done = (
                f"{self.progress.rollbacks} rollbacks were made" if folder else "there is no checkpoint yet"
            )
            raise RunFailedError(f"{why}, and {done} (guards.max_rollbacks {c.guards.max_rollbacks})")
        at, now = self.step, self.progress
        while folder is not None and not self._load(folder):
            folder, _ = self._newest()
        assert folder is not None  # or _newest has refused
        now.rolled_back(self.progress, c.guards)
        self.progress = now
        if self.world.main:
            checkpoint.clear_after(c.run, self.step)
            snapshots.clear_after(c.run, self.step)
        self._batches.close()
        self._batches = micro_batches(c, self.reader, self.world, self.step, c.train.steps)
        self.monitor.rewind(self.step)
        line = f"{why}: back to {folder.name}, learning rate x {now.lr_factor:g}"
        self.monitor.say(line)
        self._record("rollback", step=self.step, lost=at - self.step, why=line)
        self.clock.start()

    def _load(self, folder: Path) -> bool:
        """False where a rank found it damaged, and ``_newest`` is to be asked again. A collective."""
        try:
            with self.watchdog.section("load"):
                state = checkpoint.load(folder, self.engine, self.ema)
        except DamagedError as error:
            self._damaged[folder.name] = str(error)
            return False
        self.step = state.step
        self.progress = checked(Progress, state.progress, f"{folder / 'state.json'}: progress")
        self._saved, self.streak = state.step, Streak()
        return True

    def draw(self) -> None:
        """Sample grids with the raw and the averaged weights. A collective."""
        self.settle()
        with self.watchdog.section("draw"):
            self.grids.log(self.step, self.engine, self.ema, self.monitor)
        self.clock.start()

    def validate(self) -> None:
        """Loss on held-out images, raw and averaged weights, and what a judge says of drawn ones; the next
        log line has them. A plateau cuts the learning rate. A collective."""
        self.settle()
        c = self.config
        if self.probe is not None:
            with self.watchdog.section("judge"):
                self.measured |= self.probe(self.engine, self.ema)
        if not self.validation.count:
            self.clock.start()
            return
        with self.watchdog.section("validate"):
            raw = self.validation.loss(self.engine)
            with self.engine.swapped(self.ema.full()):
                averaged = self.validation.loss(self.engine)
        self.measured |= {"validation/loss": raw, "validation/loss_ema": averaged}
        self.monitor.say(f"step {self.step}: validation loss {raw:.4f}, averaged weights {averaged:.4f}")
        if self.progress.validated(raw, c.lr_schedule):
            patience = c.lr_schedule.plateau_patience
            self.monitor.say(
                f"step {self.step}: no lower validation loss in {patience} validations: "
                f"learning rate x {self.progress.lr_factor:g}"
            )
        self.clock.start()

    def keep_averages(self) -> None:
        """A snapshot of the averages of ``ema.posthoc``, where one is due. A collective."""
        c = self.config
        due = self.step % c.ema.snapshot_every == 0 or self.step == c.train.steps
        if not (c.ema.posthoc and due):
            return
        self.settle()
        self.ema.settle()
        with self.watchdog.section("save"):
            problem = snapshots.write(c.run, self.step, self.engine, self.ema)
        if problem is not None:
            self.monitor.say(f"step {self.step}: no snapshot of the averages: {problem}")
        self.clock.start()

    def owes_checkpoint(self) -> bool:
        """Whether one was due in a streak of steps left out, which is over. A collective where one was."""
        if self.streak.owed:
            self.settle()
        return self.streak.over

    def save(self) -> None:
        """Begin a checkpoint of this step; it is written beside the next steps. A collective.

        Not within a streak of steps left out, but for a single one that is the run's last. RunFailedError
        where the run ends in a longer one.
        """
        self.settle()
        if self._saved == self.step:
            return
        if not self.engine.is_finite():
            raise RunFailedError(
                f"step {self.step}: the weights are no longer finite; no checkpoint is written. "
                f"A lower optimizer.lr may help"
            )
        last = self.step == self.config.train.steps
        if self.streak.on and not (last and self.progress.skips_in_row == 1):
            self.streak.owed = True
            self.agreement.saved()
            line = f"step {self.step}: not saved, {self.progress.skips_in_row} steps in a row were left out"
            if last:
                raise self._failed(line)
            return self.monitor.say(f"{line}; older checkpoints stay")
        c, value = self.config, self.measured.get(self.config.train.best)
        if self.saver.settle():
            self.progress.best = self._best_before  # the best one was not written, if it was to be
        best, self._best_before = None, self.progress.best
        if value is not None and self.progress.is_best(value, larger=c.train.best in LARGER_IS_BETTER):
            best = {"metric": c.train.best, "value": value}
        with self.watchdog.section("save"):
            progress = self.progress
            state = state_now(c, self.data, self.step, progress.updates, self.engine, progress.as_json())
            told = partial(self._tell_pace, self.step, self.pace.taken())
            self.saver.save(state, self.engine, self.ema, best, told)
        self._saved, self.streak.owed = self.step, False
        self.agreement.saved()
        self.clock.start()

    def _tell_pace(self, step: int, taken: Taken) -> None:
        """In the saver's thread."""
        if pace := self.pace.told(taken):
            ledger.note(self.config.run, "pace", step=step, **pace)

    def report_memory(self) -> None:
        """Where the memory of the followed step went, on all ranks. A collective."""
        if self.tracer.result is None:
            return
        ranks = gather_to_main(self.tracer.result, self.world)
        if ranks is not None:
            with self.watchdog.section("memory report"):
                anatomy = report.measured(self.config, ranks)
                self.monitor.board(self.step, dict(report.scalars(anatomy)))
                with self.monitor.writing("the memory report"):
                    self.monitor.say(f"memory report: {report.save(self.config.run, anatomy)}")
