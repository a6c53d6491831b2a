"""The moving average against its formula; under ZeRO see tests/integration/test_training.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from diffcore.config.tree import Ema as EmaConfig
from diffcore.engine.ema import Ema, exponent_of
from diffcore.engine.gradients.outcome import Outcome

pytestmark = pytest.mark.numeric


class Masters:
    """What Ema needs of an engine."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.held = [torch.randn(5), torch.randn(2, 3)]

    def masters(self) -> list[Tensor]:
        return self.held


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("start", [0, 3])
def test_the_average_is_its_formula(warmup: bool, start: int) -> None:
    engine = Masters()
    ema = Ema(engine, EmaConfig(decay=0.9, warmup=warmup, start_step=start))
    wanted = [w.clone() for w in engine.held]
    for step in range(12):
        for w in engine.held:
            w.add_(torch.randn_like(w))
        ema.update(step)
        since = step - start
        decay = 0.0 if since < 0 else min(0.9, (1 + since) / (10 + since)) if warmup else 0.9
        wanted = [decay * mean + (1 - decay) * w for mean, w in zip(wanted, engine.held, strict=True)]
        for got, mean, w in zip(ema.shards, wanted, engine.held, strict=True):
            torch.testing.assert_close(got, mean)
            assert step >= start or torch.equal(got, w)  # a copy, and no storage of the weights
            assert got.data_ptr() != w.data_ptr()


def test_power_averages_are_sums_over_all_steps() -> None:
    """A step that was left out counts with the weights that stayed."""
    engine = Masters()
    ema, seen = Ema(engine, EmaConfig(posthoc=(0.05, 0.1))), []
    for step in range(12):
        left_out = step in (3, 4)
        for w in engine.held:
            w.add_(torch.randn_like(w) * (not left_out))
        seen.append([w.clone() for w in engine.held])
        ema.update(step, Outcome(not left_out))
        assert ema.averages().keys() == {"ema", "ema_0.05", "ema_0.1"}
        for sigma in (0.05, 0.1):
            power = exponent_of(sigma) + 1
            share = [((k + 1) ** power - k**power) / (step + 1) ** power for k in range(step + 1)]
            for i, got in enumerate(ema.averages()[f"ema_{sigma}"]):
                wanted = sum(s * weights[i] for s, weights in zip(share, seen, strict=True))
                torch.testing.assert_close(got, wanted)
    assert len(ema.memory) == 6 and len(Ema(engine, EmaConfig()).memory) == 2
