"""Every target on every schedule against its paper, and with every sampler against the exact answer."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcore.config.diffusion import Diffusion
from diffcore.diffusion.guidance import Denoiser, guided
from diffcore.diffusion.loss import WEIGHTS, denoising_loss
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.samplers import SAMPLERS
from diffcore.diffusion.schedule import NoiseSchedule

pytestmark = pytest.mark.numeric

SCHEDULES = ["linear", "cosine", "sigmoid", "flow", "edm"]
TARGETS = ["eps", "v", "x0", "flow", "edm"]
PAIRS = [pair for pair in itertools.product(SCHEDULES, TARGETS) if pair != ("flow", "eps")]
# The noisiest level of cosine betas has alpha_bar 1e-9: there eps says next to nothing of x_0.
DRAWN = [pair for pair in PAIRS if pair[0] in ("cosine", "flow", "edm") and pair != ("cosine", "eps")]
MEAN, STD = 0.4, 0.5
"""Of Gaussian data, of which everything is known."""


def schedule_of(
    schedule: str = "flow", target: str = "flow", timesteps: int = 300, **more: object
) -> NoiseSchedule:
    c = {"schedule": schedule, "target": target, "timesteps": timesteps, "beta_end": 0.03, **more}
    return NoiseSchedule.of(Diffusion.model_validate(c))


def noisy(shape: tuple[int, ...] = (5, 3, 2, 2), seed: int = 0) -> tuple[Tensor, Tensor]:
    x0, eps = torch.randn(2, *shape, dtype=torch.float64, generator=torch.manual_seed(seed))
    return x0, eps


@given(
    pair=st.sampled_from(PAIRS),
    timesteps=st.integers(2, 1000),
    sigma_data=st.floats(0.05, 3),
    shift=st.floats(0.2, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=100, deadline=None)
def test_the_image_comes_back_from_the_target(
    pair: tuple[str, str], timesteps: int, sigma_data: float, shift: float, seed: int
) -> None:
    s = schedule_of(*pair, timesteps, sigma_data=sigma_data, shift=shift)
    x0, eps = noisy(seed=seed)
    # Where next to nothing of x_0 is left eps cannot be turned back; the others can, in pure noise too.
    last = timesteps if pair[1] != "eps" else max(1, int((s.alpha_bar_T > 1e-6).sum()))
    t_B = torch.randint(0, last, (5,))
    x_t = s.diffuse(x0, eps, t_B)
    torch.testing.assert_close(s.x0_of(s.target_of(x0, eps, t_B), x_t, t_B), x0, rtol=1e-7, atol=1e-7)
    signal, noise = s.signal_noise(t_B, x0)
    torch.testing.assert_close(signal**2 + noise**2, torch.ones_like(noise))


def test_flow_is_the_straight_line_from_image_to_noise() -> None:
    s, (x0, eps) = schedule_of(timesteps=10), noisy()
    t_B = torch.tensor([0, 3, 4, 8, 9])
    time = ((t_B + 1) / 10).double().view(-1, 1, 1, 1)
    line = (1 - time) * x0 + time * eps
    x_t = s.diffuse(x0, eps, t_B)
    torch.testing.assert_close(s.network_input(x_t, t_B), line)
    torch.testing.assert_close(s.target_of(x0, eps, t_B), eps - x0)
    velocity = torch.sin(line)
    torch.testing.assert_close(s.x0_of(velocity, x_t, t_B), line - time * velocity)


@pytest.mark.parametrize("m", [0.5, 2.0, 3.0])
def test_shift_is_essers_and_moves_log_snr(m: float) -> None:
    plain, moved = schedule_of(timesteps=50), schedule_of(timesteps=50, shift=m)
    time = torch.arange(1, 51, dtype=torch.float64) / 50
    wanted = m * time / (1 + (m - 1) * time)  # eq. 23
    signal, noise = moved.alpha_bar_T.sqrt(), (1 - moved.alpha_bar_T).sqrt()
    torch.testing.assert_close(noise / (signal + noise), wanted)
    for schedule in SCHEDULES:
        plain, moved = (schedule_of(schedule, "v", shift=factor) for factor in (1.0, m))
        torch.testing.assert_close(moved.snr * m**2, plain.snr)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sigma_data", [0.2, 0.5, 1.0])
def test_edm_is_karras_table_1(schedule: str, sigma_data: float) -> None:
    s, (x0, eps) = schedule_of(schedule, "edm", sigma_data=sigma_data), noisy()
    t_B = torch.tensor([0, 30, 150, 250, 290])
    alpha_bar = s.alpha_bar_T[t_B].view(-1, 1, 1, 1)
    sigma = ((1 - alpha_bar) / alpha_bar).sqrt()
    data = sigma_data**2
    c_skip, c_out = data / (sigma**2 + data), sigma * sigma_data / (sigma**2 + data).sqrt()
    c_in, weight = 1 / (sigma**2 + data).sqrt(), (sigma**2 + data) / (sigma * sigma_data) ** 2
    x, x_t = x0 + sigma * eps, s.diffuse(x0, eps, t_B)
    torch.testing.assert_close(x_t / alpha_bar.sqrt(), x)
    torch.testing.assert_close(s.network_input(x_t, t_B), c_in * x)
    output = torch.sin(5 * eps)
    torch.testing.assert_close(s.x0_of(output, x_t, t_B), c_skip * x + c_out * output)
    # The network's plain error is the weighted one of x_0: effective training target and lambda(sigma).
    wanted = weight * (s.x0_of(output, x_t, t_B) - x0) ** 2
    torch.testing.assert_close((output - s.target_of(x0, eps, t_B)) ** 2, wanted)


def test_edm_of_unit_data_is_minus_v() -> None:
    edm, v = schedule_of("cosine", "edm", sigma_data=1.0), schedule_of("cosine", "v")
    (x0, eps), t_B = noisy(), torch.tensor([0, 30, 150, 250, 299])
    torch.testing.assert_close(edm.target_of(x0, eps, t_B), -v.target_of(x0, eps, t_B))
    torch.testing.assert_close(edm.network_input(x0, t_B), x0)


def test_edm_levels_are_karras() -> None:
    s = schedule_of("edm", "edm", 18)
    sigma = ((1 - s.alpha_bar_T) / s.alpha_bar_T).sqrt().flip(0)
    i = torch.arange(18, dtype=torch.float64)
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    torch.testing.assert_close(sigma, (high + i / 17 * (low - high)) ** 7)  # eq. 5
    assert not s.warnings and s.wasted == 0


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_x0_error_and_min_snr_are_of_the_image(target: str, scale: float) -> None:
    s = schedule_of("edm", target, input_scale=scale)
    (x0, eps), t_B = noisy((1, 3, 2, 2)), torch.tensor([100])
    x_t, output = s.diffuse(x0, eps, t_B), noisy((1, 3, 2, 2), 1)[0]
    error = (s.target_of(x0, eps, t_B) - output).square().mean()
    x0_error = (s.x0_of(output, x_t, t_B) - x0).square().mean()
    torch.testing.assert_close(x0_error, s.x0_error[100] * error)
    if scale == 1:
        wanted = s.snr[100].clamp(max=5) * x0_error
        torch.testing.assert_close(WEIGHTS["min_snr"](s)[100] * error, wanted)


@pytest.mark.parametrize(("schedule", "target"), PAIRS)
def test_sigmoid_weighs_the_error_of_eps_by_its_log_snr(schedule: str, target: str) -> None:
    """Against the integral over logSNR, which knows neither schedule nor target."""
    s = schedule_of(
        schedule, target, 2000, beta_start=1e-5, beta_end=0.01, input_scale=0.7, sigmoid_bias=-1.0
    )
    (x0, eps), t_B = noisy((2000, 3, 1, 1)), torch.arange(2000)
    # Of a network that errs in eps by 0.1 at every level: the loss is the weights' integral.
    x_t = s.diffuse(x0, eps, t_B)
    signal, noise = s.signal_noise(t_B, x0)
    wrong_x0 = (x_t - noise * (eps + 0.1)) / signal.clamp(min=1e-12)
    error_T = (s.target_of(wrong_x0, eps + 0.1, t_B) - s.target_of(x0, eps, t_B)).square().flatten(1).mean(1)
    loss_T = WEIGHTS["sigmoid"](s) * error_T
    assert WEIGHTS["sigmoid"](s).mean() == pytest.approx(1)
    log_snr = s.snr.log()
    for low, high in ((-6, -3), (-3, -1), (-1, 2), (2, 5)):
        inside = (log_snr > low) & (log_snr <= high)
        middle = (log_snr > -3) & (log_snr <= 2)
        got = float(loss_T[inside].sum() / loss_T[middle].sum())
        area = [math.log1p(math.exp(-1 - edge)) for edge in (low, high, -3, 2)]  # -integral of the sigmoid
        assert got == pytest.approx((area[0] - area[1]) / (area[2] - area[3]), rel=0.05)


@pytest.mark.parametrize("weight", list(WEIGHTS))
@pytest.mark.parametrize("timesteps", [2, 3, 100])
@pytest.mark.parametrize(("schedule", "target"), PAIRS)
def test_weights_are_finite_everywhere(weight: str, timesteps: int, schedule: str, target: str) -> None:
    weights_T = WEIGHTS[weight](schedule_of(schedule, target, timesteps))
    assert weights_T.shape == (timesteps,) and weights_T.isfinite().all() and (weights_T >= 0).all()
    assert weights_T.any()


def posterior_mean(s: NoiseSchedule, x_t: Tensor, t: int) -> Tensor:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2), by Bayes' rule for Gaussians."""
    alpha_bar = s.alpha_bar_T[t]
    gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
    return MEAN + gain * (x_t - alpha_bar.sqrt() * MEAN)


@pytest.mark.parametrize(("schedule", "target"), PAIRS)
def test_the_least_loss_is_at_the_posterior_mean(schedule: str, target: str) -> None:
    s, count = schedule_of(schedule, target), 100_000
    x0, eps = noisy((count, 1, 1, 1))
    x0, t_B = MEAN + STD * x0, torch.full((count,), 120)
    draws = Draws(t_B, eps, torch.ones(count, dtype=torch.bool))
    seen: list[Tensor] = []

    def zero(x: Tensor, *rest: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    loss_B = denoising_loss(zero, s, WEIGHTS["uniform"](s), x0, t_B[:, None], draws)
    wanted = s.target_of(x0, eps, t_B)
    torch.testing.assert_close(loss_B, wanted.float().square().flatten())
    # The best affine network, by least squares; for Gaussian data no network is better.
    design = torch.stack([seen[0].flatten(), torch.ones(count, dtype=torch.float64)], 1)
    gain, offset = torch.linalg.lstsq(design, wanted.flatten()[:, None]).solution.flatten()
    x_t = s.diffuse(x0[:200], eps[:200], t_B[:200])
    got = s.x0_of(gain * s.network_input(x_t, t_B[:200]) + offset, x_t, t_B[:200])
    assert float((got - posterior_mean(s, x_t, 120)).abs().max()) < 0.02


def best_network(s: NoiseSchedule) -> Callable[..., Tensor]:
    """The network of least loss on the Gaussian data: it sees ``network_input`` and predicts the target."""

    def network(x: Tensor, t_B: Tensor, *rest: Tensor) -> Tensor:
        one = torch.ones_like(x)
        x_t = x / s.network_input(one, t_B)
        x0 = posterior_mean(s, x_t, int(t_B[0]))
        return s.target_of(x0, s.eps_of(x0, x_t, t_B), t_B)

    return network


def denoiser(s: NoiseSchedule, count: int) -> Denoiser:
    return guided(best_network(s), s, torch.zeros(count, 1, dtype=torch.int64), 1.0, clamp=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize(("schedule", "target"), DRAWN)
def test_every_sampler_draws_the_data_of_every_target(sampler: str, schedule: str, target: str) -> None:
    s, count = schedule_of(schedule, target, 200), 20_000
    generator = torch.manual_seed(0)

    def noise(step: int) -> Tensor:
        return torch.randn(count, 1, 1, 1, dtype=torch.float64, generator=generator)

    x0 = SAMPLERS[sampler](denoiser(s, count), s, noise(0), 40, noise, 0.0)
    assert abs(x0.mean() - MEAN) < 0.03 and abs(x0.std() - STD) < 0.03


@pytest.mark.parametrize("target", ["v", "x0", "flow", "edm"])
def test_ddim_is_eulers_method_along_the_flow(target: str) -> None:
    s, (x, _) = schedule_of("flow", target, 20), noisy((4, 1, 1, 1))
    got = SAMPLERS["ddim"](denoiser(s, 4), s, x, 10, lambda i: x, 0.0)
    for t in range(19, 0, -2):  # x_s at s = 1, 0.9, ..., 0.1; a step is ds = -0.1
        time = (t + 1) / 20
        x_t = x / math.hypot(time, 1 - time)
        x0 = posterior_mean(s, x_t, t)
        x = x - 0.1 * (x - x0) / time  # eps - x_0 = (x_s - x_0) / s
    torch.testing.assert_close(got, x)


@pytest.mark.parametrize("target", ["eps", "edm"])
def test_heun_is_karras_algorithm_1(target: str) -> None:
    s, (start, _) = schedule_of("edm", target, 60), noisy((4, 1, 1, 1))
    got = SAMPLERS["heun"](denoiser(s, 4), s, start, 20, lambda i: start, 0.0)
    levels = list(range(59, 0, -3))
    sigmas = [float(((1 - s.alpha_bar_T[t]) / s.alpha_bar_T[t]).sqrt()) for t in levels]

    def slope(x: Tensor, i: int) -> Tensor:
        x_t = x / math.hypot(1, sigmas[i])
        return (x - posterior_mean(s, x_t, levels[i])) / sigmas[i]

    x = start * math.hypot(1, sigmas[0])
    for i, (sigma, after) in enumerate(itertools.pairwise([*sigmas, 0.0])):
        euler = x + (after - sigma) * slope(x, i)
        x = x + (after - sigma) * (slope(x, i) + slope(euler, i + 1)) / 2 if after else euler
    torch.testing.assert_close(got, x)


def test_what_says_nothing_at_pure_noise_is_refused() -> None:
    for c in ({"schedule": "flow"}, {"zero_terminal_snr": True}):
        with pytest.raises(ValueError, match=r"needs target .*pure noise"):
            Diffusion.model_validate({**c, "target": "eps"})
        assert NoiseSchedule.of(Diffusion.model_validate({**c, "target": "flow"})).alpha_bar_T[-1] == 0
