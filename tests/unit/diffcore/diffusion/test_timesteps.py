"""Levels drawn by their density and stratified, against scipy, plain loops and the uniform draws."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffcore.config.diffusion import Diffusion
from diffcore.diffusion import philox, randomness
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.diffusion.timesteps import ONE, ends, levels_of, probabilities, share

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")


def section(**given: Any) -> Diffusion:
    return Diffusion.model_validate({"schedule": "flow", "target": "flow", "timesteps": 200, **given})


def drawn(c: Diffusion, positions: range, seed: int = 7, batch: int = 8) -> list[int]:
    draws = randomness.Draws.on_device(
        torch.tensor(positions), seed=seed, timesteps=c.timesteps, label_dropout=0.1, shape=(1, 1, 1),
        levels=levels_of(c, seed, batch),
    )  # fmt: skip
    assert draws.t_B.dtype == torch.int64
    return draws.t_B.tolist()


def test_uniform_levels_are_those_of_before() -> None:
    assert levels_of(section(), 7, 8) is None
    words = philox.words(3, torch.arange(500), 1, 1)[:, 0]
    # What philox.uniform is, in Python's whole numbers.
    wanted = [((word % 2**64) >> 21) * 1000 >> 43 for word in words.tolist()]
    assert philox.uniform(words, 1000).tolist() == wanted


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (-1.2, 1.2)])
@pytest.mark.parametrize("schedule", ["flow", "edm", "cosine"])
def test_log_normal_has_the_shares_of_the_normal_distribution(schedule: str, mean: float, std: float) -> None:
    c = section(
        schedule=schedule, target="v", timestep_density="log_normal", timestep_mean=mean, timestep_std=std
    )
    alpha_bar = NoiseSchedule.of(c).alpha_bar_T.numpy()
    with np.errstate(divide="ignore"):
        ratio = np.sqrt((1 - alpha_bar) / alpha_bar)
    # sigma / alpha is log-normal in scipy's terms.
    below = scipy.stats.lognorm(s=std, scale=np.exp(mean)).cdf(ratio[:-1])
    wanted = np.diff([0, *below, 1])
    got = probabilities(c)
    np.testing.assert_allclose(got.numpy(), wanted, atol=1e-12)
    assert ends(c, CPU)[-1] == ONE and bool((ends(c, CPU).diff() >= 0).all())
    # And the draws have them: chi-squared over levels put together to 20 or more expected.
    count, expected = 4000, wanted * 4000
    groups = np.minimum((np.cumsum(expected) / 25).astype(int), int(count / 25) - 1)
    seen = np.bincount(groups[drawn(c, range(count))], minlength=groups.max() + 1)
    should = np.bincount(groups, expected)
    present = should > 0
    assert scipy.stats.chisquare(seen[present], should[present]).pvalue > 1e-4


def test_the_logit_of_flows_time_is_normal() -> None:
    """Esser et al. 2024's logit-normal density, level by level: s = (t + 1) / T."""
    c = section(timestep_density="log_normal")
    s = np.arange(1, 200) / 200
    below = scipy.stats.norm.cdf(np.log(s / (1 - s)))
    np.testing.assert_allclose(probabilities(c)[:-1].cumsum(0).numpy(), below, atol=1e-12)


@given(batch=st.integers(1, 2**24), data=st.data())
@settings(max_examples=200)
def test_share_is_exact(batch: int, data: st.DataObject) -> None:
    number = data.draw(st.integers(0, batch - 1))
    assert share(torch.tensor([number]), batch).item() == int(Fraction(number, batch) * ONE)


@given(
    batch=st.integers(1, 50),
    step=st.integers(0, 2**30),
    seed=st.integers(0, 2**63 - 1),
    density=st.sampled_from(["uniform", "log_normal"]),
)
@settings(max_examples=50, deadline=None)
def test_stratified_covers_every_stratum_once(batch: int, step: int, seed: int, density: str) -> None:
    c = section(timestep_density=density, timestep_stratified=True, timesteps=50)
    places = range(step * batch, (step + 1) * batch)
    got = np.bincount(drawn(c, places, seed, batch), minlength=50)
    # Any run of levels has its share of the batch, give or take one at each end.
    share_T = probabilities(c).cumsum(0).numpy() * batch
    assert np.abs(np.cumsum(got) - share_T).max() < 1 + 1e-6
    # Of the position alone: whichever others are drawn with it.
    order = np.random.default_rng(0).permutation(batch)
    alone = [drawn(c, range(places[i], places[i] + 1), seed, batch)[0] for i in order]
    assert alone == [drawn(c, places, seed, batch)[i] for i in order]


def test_a_stratified_sample_alone_has_the_density() -> None:
    c = section(timestep_stratified=True, timesteps=10)
    third = [drawn(c, range(step * 8 + 3, step * 8 + 4))[0] for step in range(2000)]
    assert scipy.stats.chisquare(np.bincount(third, minlength=10)).pvalue > 1e-4


def test_noise_and_drops_do_not_change_with_the_levels() -> None:
    positions = torch.arange(20)
    given: Any = {"seed": 1, "timesteps": 200, "label_dropout": 0.5, "shape": (3, 2, 2)}
    plain = randomness.Draws.on_device(positions, **given)
    c = section(timestep_density="log_normal", timestep_stratified=True)
    other = randomness.Draws.on_device(positions, **given, levels=levels_of(c, 1, 8))
    assert torch.equal(plain.eps_BCHW, other.eps_BCHW) and torch.equal(plain.keep_B, other.keep_B)
    assert not torch.equal(plain.t_B, other.t_B)


@pytest.mark.parametrize("more", [{"timestep_density": "log_normal"}, {"timestep_stratified": True}])
def test_the_first_draws_are_uniform(more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"draws 1 has only uniform timesteps"):
        section(draws=1, **more)
