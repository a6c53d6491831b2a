"""The loop of a run."""

from __future__ import annotations

from diffbase.exits import DONE, PREEMPTED
from diffcore.training.cadence import due_after
from diffcore.training.run import Training


def train(training: Training) -> int:
    """One run, from its newest complete checkpoint or from nothing, to ``train.steps``."""
    t, config = training, training.config
    while t.step < config.train.steps:
        if t.asked_to_stop():
            if t.log():  # an exploded loss is not to be gone on from
                t.save()
            return PREEMPTED
        t.learn()
        last = t.step == config.train.steps
        saving, validating = due_after(config, t.step, t.agreement.due, t.owes_checkpoint())
        if validating:
            t.validate()
        if (validating or t.step % config.train.log_every == 0) and not t.log():
            t.roll_back()
            continue
        if t.step % config.sampling.every == 0 or last:
            t.draw()
        t.keep_averages()  # before a checkpoint of this step: what comes after it is made again
        if saving:
            t.save()
    t.report_memory()
    return DONE
