"""What samplers of few steps stand on: which levels they take, and UniPC's integrals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import scipy.integrate
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcore.config.diffusion import Diffusion
from diffcore.config.tree import Sampling
from diffcore.diffusion.samplers import SAMPLERS, _mean_x0
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.diffusion.spacing import SPACINGS, logsnr_timesteps, rho_timesteps, spaced_timesteps

pytestmark = pytest.mark.numeric


def schedule_of(schedule: str, timesteps: int = 1000) -> NoiseSchedule:
    return NoiseSchedule.of(
        Diffusion.model_validate({"schedule": schedule, "target": "v", "timesteps": timesteps})
    )


@given(
    spacing=st.sampled_from(list(SPACINGS)),
    schedule=st.sampled_from(["linear", "cosine", "flow", "edm"]),
    timesteps=st.integers(2, 500),
    data=st.data(),
)
@settings(max_examples=80, deadline=None)
def test_levels_go_down_from_the_noisiest(
    spacing: str, schedule: str, timesteps: int, data: st.DataObject
) -> None:
    steps = data.draw(st.integers(1, timesteps))
    ts = SPACINGS[spacing](schedule_of(schedule, timesteps), steps)
    assert ts[0] == timesteps - 1 and 1 <= len(ts) <= steps
    assert all(a > b >= 0 for a, b in itertools.pairwise(ts))
    with pytest.raises(ValueError, match="allowed: 1 to"):
        SPACINGS[spacing](schedule_of(schedule, timesteps), timesteps + 1)


@pytest.mark.parametrize("steps", [6, 10, 20])
def test_rho_is_karras_spacing_to_the_nearest_level(steps: int) -> None:
    s = schedule_of("cosine", 100_000)
    sigma = ((1 - s.alpha_bar_T) / s.alpha_bar_T).sqrt()
    got = sigma[rho_timesteps(s, steps)]
    low = float(sigma[0]) ** (1 / 7)
    wanted = [(80 ** (1 / 7) + i / steps * (low - 80 ** (1 / 7))) ** 7 for i in range(1, steps)]
    torch.testing.assert_close(got[1:], torch.tensor(wanted, dtype=torch.float64), rtol=0.01, atol=0)
    # On Karras's own levels they are even in t, as far as whole levels can be.
    edm = schedule_of("edm", 1200)
    assert np.abs(np.subtract(rho_timesteps(edm, steps), spaced_timesteps(1200, steps))).max() <= 1


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "dpm++sde", "heun", "unipc"])
@pytest.mark.parametrize("spacing", list(SPACINGS))
def test_every_sampler_takes_the_levels_that_it_is_given(sampler: str, spacing: str) -> None:
    s = schedule_of("flow")
    levels, seen = SPACINGS[spacing](s, 10), list[int]()

    def denoise(x: Tensor, t: int) -> Tensor:
        seen.append(t)
        return torch.tanh(x)

    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    final = SAMPLERS[sampler](denoise, s, x, levels, lambda i: x, 0.0)
    assert list(dict.fromkeys(seen)) == levels and final.isfinite().all()
    if sampler != "heun":
        assert len(seen) == len(levels)
    if sampler in ("dpm++sde", "unipc"):
        assert torch.equal(final, SAMPLERS[sampler](denoise, s, x, 10, lambda i: x, 0.0)) == (
            levels == logsnr_timesteps(s, 10)
        )


@given(
    places=st.lists(st.floats(-3, 3), min_size=1, max_size=3, unique_by=lambda x: round(4 * x)),
    start=st.floats(-2, 2),
    h=st.floats(0.05, 6),
)
@settings(max_examples=100, deadline=None)
def test_the_mean_x0_is_the_integral_of_the_polynomial(places: list[float], start: float, h: float) -> None:
    values = [math.sin(7 * place) for place in places]
    polynomial = np.polynomial.Polynomial.fit(places, values, len(places) - 1)
    above, _ = scipy.integrate.quad(lambda at: math.exp(at) * float(polynomial(at)), start, start + h)
    wanted = above / (math.exp(start + h) - math.exp(start))
    known = [
        (place, torch.tensor([value], dtype=torch.float64))
        for place, value in zip(places, values, strict=True)
    ]
    assert _mean_x0(known, start, start + h).item() == pytest.approx(wanted, rel=1e-5, abs=1e-5)


def test_unipc_is_exact_where_x0_is_linear_in_lambda() -> None:
    """Whatever the steps' length, but for the last, which is of first order."""
    s = schedule_of("edm")
    lambda_T = 0.5 * s.snr.log()
    levels = [999, 700, 500, 200, 0]

    def x0_at(t: int) -> float:
        return 0.3 - 0.1 * float(lambda_T[t])

    seen: list[Tensor] = []

    def denoise(x: Tensor, t: int) -> Tensor:
        seen.append(x)
        return torch.full_like(x, x0_at(t))

    SAMPLERS["unipc"](denoise, s, torch.ones(1, 1, 1, 1, dtype=torch.float64), levels, lambda i: seen[0], 0.0)
    # d (x / sigma) = exp(lambda) x_0 d lambda, by scipy. The first prediction is corrected at the second.
    sigma_T = (1 - s.alpha_bar_T).sqrt()
    start = float(lambda_T[999])
    for i, t in list(enumerate(levels))[2:]:
        area, _ = scipy.integrate.quad(
            lambda at: math.exp(at) * (0.3 - 0.1 * at), start, float(lambda_T[t]), epsabs=1e-12
        )
        wanted = float(sigma_T[t]) * (1 / float(sigma_T[999]) + area)
        assert seen[i].item() == pytest.approx(wanted, abs=1e-8)


def test_ddpm_takes_all_levels() -> None:
    with pytest.raises(ValueError, match="spacing rho is not for sampler ddpm"):
        Sampling.model_validate({"sampler": "ddpm", "spacing": "rho"})
