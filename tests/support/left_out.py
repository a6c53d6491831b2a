"""python -m tests.support.left_out CONFIG...: runs in which a gradient is not finite, as JSON by config.

Five steps, the third of which has one, then two such in a row under guards.max_skips 2. "same": whether the
third left weights, average and moments as they were; "updates", "skips": the run's own counts after it;
"refused": steps of the checkpoints that there are after one was asked for right then; "owed": whether it is
made up for then, and after the fourth; "saved": step, updates and skips in a row of that; "moved": whether
the fourth changed the weights; "count": Adam's own steps after the fifth; "end": the error in the end.
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from diffbase.exits import RunFailedError
from diffcore.runs import checkpoint
from diffcore.training.run import Training
from tests.support.in_training import report


def _states(t: Training) -> list[Tensor]:
    named = [t.engine.masters(), t.ema.shards, *t.engine.moments().values()]
    return [part.clone() for shards in named for _, _, part in t.engine.parts(shards)]


def _same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def _left_out(t: Training) -> None:
    backward = t.engine.backward
    t.engine.backward = lambda loss: backward(loss * float("inf"))  # type: ignore[method-assign]
    t.learn()
    t.engine.backward = backward  # type: ignore[method-assign]


def observed(t: Training) -> dict[str, Any]:
    """What the module says, of one run."""
    t.learn()
    t.learn()
    before = _states(t)
    _left_out(t)
    t.save()  # at once: it must not take the step for one that was made
    after = _states(t)
    found: dict[str, Any] = {
        "same": _same(before, after),
        "updates": t.progress.updates,
        "skips": t.progress.skips,
    }
    t.saver.wait()
    found["refused"] = list(map(checkpoint.step_of, checkpoint.complete(t.config.run)))
    found["owed"] = [t.owes_checkpoint()]
    t.learn()
    found["owed"].append(t.owes_checkpoint())
    t.save()
    t.saver.wait()
    newest = checkpoint.complete(t.config.run)[-1]
    state = json.loads((newest / "state.json").read_text())
    found["saved"] = [state["step"], state["updates"], state["progress"]["skips_in_row"]]
    found["moved"] = not _same(after, _states(t))
    t.learn()
    t.settle()
    count = next(iter(t.engine._base_optimizer.state.values()))["step"]
    found["count"] = float(count)
    try:
        _left_out(t)
        _left_out(t)  # under ZeRO-1 to 3 it tells by itself
        t.learn()  # under ZeRO-0 before this one steps
        found["end"] = "none"
    except RunFailedError as error:
        found["end"] = str(error)
    return found


if __name__ == "__main__":
    report(observed)
