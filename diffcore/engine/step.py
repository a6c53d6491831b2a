"""One optimizer step: a run makes it again and again, a rehearsal measures what it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

from torch import Tensor

from diffcore.engine.ema import Ema
from diffcore.engine.engine import Engine
from diffcore.engine.gradients.outcome import Outcome

B = TypeVar("B")


def take_step(
    engine: Engine,
    ema: Ema,
    number: int,
    lr: float,
    batches: Iterator[B],
    loss_of: Callable[[B], Tensor],
    after: Callable[[str], None],
) -> tuple[Outcome, Tensor]:
    """Step ``number`` (0 is the first) on the next ``engine.accumulation`` micro batches.

    ``loss_of`` gives a micro batch's losses [B]. ``after`` is called as each part ends: data, forward,
    backward and optimizer of every micro batch, then ema. Returns whether the weights may have changed (not
    where a gradient was not finite and every rank left the step out), and the last micro batch's losses.

    Where only the device knows that, the average takes the step in later: before the next one, or when it is
    read.
    """
    outcome = Outcome(True)
    for _ in range(engine.accumulation):
        batch = next(batches)
        after("data")
        loss_B = loss_of(batch)
        after("forward")
        engine.backward(loss_B.mean())
        after("backward")
        ema.settle()  # what the step before it left, while the weights are still that one's
        outcome = engine.step(lr)
        after("optimizer")
    ema.update(number, outcome)
    after("ema")
    return outcome, loss_B
