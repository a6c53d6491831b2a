"""A training run as an object: what the loop in ``train.py`` does in each of its lines.

Everything that all ranks must decide alike (to stop, to leave a step out, to roll back) is decided from
figures that are the same on all of them.
"""

from __future__ import annotations

import contextlib
from functools import partial

from torch import Tensor

from diffbase import ledger
from diffbase.exits import RunFailedError
from diffcore.engine.ranks import gather, gather_to_main
from diffcore.engine.step import take_step
from diffcore.memory import report
from diffcore.runs import checkpoint
from diffcore.runs.averages import snapshots
from diffcore.runs.saver import state_now
from diffcore.training.batches import MicroBatch, micro_batches
from diffcore.training.guards.streak import last_good
from diffcore.training.learning_rate import learning_rate
from diffcore.training.meters.log_line import figures_of
from diffcore.training.meters.pace import Taken
from diffcore.training.open_run import OpenRun

LARGER_IS_BETTER = ("quality/fidelity",)
"""Metrics of which train.best wants the largest value; of all others the lowest."""


class Training(OpenRun):
    """A run's steps, and what is done between them."""

    # --- a step -----------------------------------------------------------------------------------------

    def _loss_of(self, batch: MicroBatch) -> Tensor:
        """Losses of a micro batch's samples: [B]."""
        loss_B = self._objective(self.engine, batch)
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
        if line := self._objective.begin(self.step):
            self.monitor.say(line)
        self.profile.before(self.step + 1)
        self.measured = {}  # of one step: neither a later log line nor a later checkpoint is to have it
        self.tracer.begin(self.step)
        outcome, loss_B = take_step(
            self.engine, self.ema, self.step, self._lr, self._batches, self._loss_of, self._after
        )
        self.step += 1
        flops = self._work.an_image(self.step - 1, self.step)
        self.costs.step(self.config.batch.size, flops, self._work.optimizer)
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
        first = self.step - steps
        flops = self._work.an_image(first, self.step)
        figures = {f"train/{name}": value for name, value in losses.items()} | {
            "train/learning_rate": self._lr,
            "train/gradient_norm": self.engine.gradient_norm(),
            "train/samples": self.step * c.batch.size,
            "train/skipped_steps": self.progress.skips,
            **{f"spent/{name}": value for name, value in self.costs.now().items()},
            **figures_of(seconds, steps, c.batch.size, flops, w.size, w.device),
            **self.measured,
        }
        if c.engine.precision == "fp16":
            figures["train/loss_scale"] = self.engine.loss_scale
        if self._peak:
            figures["train/mfu"] = figures["train/tflops_a_rank"] * 1e12 / self._peak
        self.monitor.scalars(self.step, figures)
        self.monitor.progress(self.step, figures, len(self.reader))
        self._record_lost_log()
        if self._objective.entered(first, self.step):
            self.progress.losses = []  # of images of another size, with another loss
        exploded = self.progress.exploded(losses["loss"], c.guards)
        self.clock.start()
        return not exploded

    def roll_back(self) -> None:
        """Go back to the newest complete checkpoint with a lower learning rate. A collective."""
        c = self.config
        self.settle()
        self.saver.settle()
        folder, _ = self._checkpoints.newest()
        why = f"step {self.step}: the loss is above {c.guards.explosion:g} times its recent median"
        if folder is None or self.progress.rollbacks >= c.guards.max_rollbacks:
            done = (
                f"{self.progress.rollbacks} rollbacks were made" if folder else "there is no checkpoint yet"
            )
            raise RunFailedError(f"{why}, and {done} (guards.max_rollbacks {c.guards.max_rollbacks})")
        at, now = self.step, self.progress
        taken, _ = self._checkpoints.take_up(folder, [], self.engine, self.ema)
        assert taken is not None  # or it has refused
        self._follow(taken)
        now.rolled_back(self.progress, c.guards)
        self.progress = now
        if self.world.main:
            checkpoint.clear_after(c.run, self.step)
            snapshots.clear_after(c.run, self.step)
        self._batches.close()
        self._batches = micro_batches(c, self.reader, self.world, self.step, c.train.steps)
        self.monitor.rewind(self.step)
        line = f"{why}: back to {taken.folder.name}, learning rate x {now.lr_factor:g}"
        self.monitor.say(line)
        self._record("rollback", step=self.step, lost=at - self.step, why=line)
        self.clock.start()

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
        # Before it, held-out images are not of the size that is learned: no plateau is one of learning.
        at_last = c.train.side(self.step - 1, self.reader.size) == self.reader.size
        if at_last and self.progress.validated(raw, c.lr_schedule):
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
            return self.monitor.say(f"{line}; nothing older is removed")
        c, value = self.config, self.measured.get(self.config.train.best)
        if self.saver.settle():
            self.progress.best = self._best_before  # the best one was not written, if it was to be
        best, self._best_before = None, self.progress.best
        if value is not None and self.progress.is_best(value, larger=c.train.best in LARGER_IS_BETTER):
            best = {"metric": c.train.best, "value": value}
            if (count := self.measured.get(f"{c.train.best}_attributes")) is not None:
                best["attributes"] = int(count)
        with self.watchdog.section("save"):
            progress = self.progress
            spent, told_of = self.costs.now(), progress.as_json()
            state = state_now(c, self.data, self.step, progress.updates, self.engine, told_of, spent)
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
