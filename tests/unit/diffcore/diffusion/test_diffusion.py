"""Schedules and samplers against diffusers' schedulers of the same name, in float64."""

from __future__ import annotations

import itertools
import math

import diffusers
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcore.config.diffusion import Diffusion
from diffcore.diffusion import randomness
from diffcore.diffusion.guidance import Denoiser, guided
from diffcore.diffusion.loss import WEIGHTS
from diffcore.diffusion.samplers import SAMPLERS
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.diffusion.spacing import logsnr_timesteps, spaced_timesteps

pytestmark = pytest.mark.numeric

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2", "sigmoid": "sigmoid"}
TARGETS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}


def reference(kind: type, c: Diffusion, **more: object) -> object:
    return kind(
        num_train_timesteps=c.timesteps,
        beta_start=c.beta_start,
        beta_end=c.beta_end,
        # Not every scheduler knows every schedule: all are given our levels below.
        beta_schedule=KINDS[c.schedule] if kind is diffusers.DDPMScheduler else "linear",
        prediction_type=TARGETS[c.target],
        **({"clip_sample": True, "timestep_spacing": "trailing"} | more),
    )


def network(x: Tensor, t_B: Tensor) -> Tensor:
    """Any smooth function of x and t will do as a network."""
    return torch.sin(3 * x + t_B.view(-1, 1, 1, 1) / 50) * 0.8


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_schedule_equals_diffusers(schedule: str, target: str) -> None:
    c = Diffusion(schedule=schedule, timesteps=300, beta_end=0.008, target=target)
    ours, theirs = NoiseSchedule.of(c), reference(diffusers.DDPMScheduler, c)
    # diffusers keeps its tables in fp32
    torch.testing.assert_close(ours.alpha_bar_T.float(), theirs.alphas_cumprod, rtol=3e-5, atol=1e-7)
    theirs.alphas_cumprod = ours.alpha_bar_T
    x0, eps = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    t_B = torch.tensor([0, 1, 150, 298, 299])
    torch.testing.assert_close(ours.diffuse(x0, eps, t_B), theirs.add_noise(x0, eps, t_B))
    if target == "v":
        torch.testing.assert_close(ours.target_of(x0, eps, t_B), theirs.get_velocity(x0, eps, t_B))


@given(
    schedule=st.sampled_from(list(KINDS)),
    target=st.sampled_from(list(TARGETS)),
    timesteps=st.integers(2, 1000),
    beta_end=st.floats(1e-3, 0.3),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_changes_of_variable_invert(
    schedule: str, target: str, timesteps: int, beta_end: float, seed: int
) -> None:
    c = Diffusion(schedule=schedule, timesteps=timesteps, beta_end=beta_end, target=target)
    s = NoiseSchedule.of(c)
    x0, eps = torch.randn(2, 4, 3, 2, 2, dtype=torch.float64, generator=torch.manual_seed(seed))
    # The noisiest levels of the steepest schedules keep nothing of x0, so eps cannot be turned back there.
    t_B = torch.randint(0, timesteps, (4,)) % max(1, int((s.alpha_bar_T > 1e-6).sum()))
    x_t = s.diffuse(x0, eps, t_B)
    torch.testing.assert_close(s.x0_of(s.target_of(x0, eps, t_B), x_t, t_B), x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(s.eps_of(x0, x_t, t_B), eps, rtol=1e-7, atol=1e-7)


def denoiser(schedule: NoiseSchedule, seen: list[Tensor] | None = None, clamp: bool = True) -> Denoiser:
    """``network`` as what the samplers want; keeps every x_t that it was asked at."""

    def denoise(x: Tensor, t: int) -> Tensor:
        if seen is not None:
            seen.append(x)
        t_B = torch.full((len(x),), t)
        x0 = schedule.x0_of(network(x, t_B), x, t_B)
        return schedule.clamp(x0) if clamp else x0

    return denoise


def no_noise(step: int) -> Tensor:
    raise AssertionError("this sampler is deterministic")


def start() -> Tensor:
    return torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(1))


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("steps", [1, 2, 10, 20, 300])
def test_ddim_equals_diffusers_at_every_step(schedule: str, target: str, steps: int) -> None:
    c = Diffusion(schedule=schedule, timesteps=300, beta_end=0.03, target=target)
    ours = NoiseSchedule.of(c)
    theirs = reference(diffusers.DDIMScheduler, c, set_alpha_to_one=True)
    theirs.alphas_cumprod = ours.alpha_bar_T
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == spaced_timesteps(300, steps)

    seen: list[Tensor] = []
    final = SAMPLERS["ddim"](denoiser(ours, seen), ours, start(), steps, no_noise, 0.0)
    x = start()
    for i, t in enumerate(theirs.timesteps):
        torch.testing.assert_close(seen[i], x, rtol=1e-5, atol=1e-5)
        x = theirs.step(network(x, t.repeat(2)), t, x, use_clipped_model_output=True).prev_sample
    torch.testing.assert_close(final, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_noise_equals_diffusers(schedule: str, eta: float) -> None:
    c = Diffusion(schedule=schedule, timesteps=300, beta_end=0.03, target="v")
    ours = NoiseSchedule.of(c)
    theirs = reference(diffusers.DDIMScheduler, c, set_alpha_to_one=True)
    theirs.alphas_cumprod = ours.alpha_bar_T
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64)
    theirs.set_timesteps(10)
    fresh = [torch.randn(2, 3, 4, 4, dtype=torch.float64) for _ in range(10)]
    final = SAMPLERS["ddim"](denoiser(ours), ours, start(), 10, lambda i: fresh[i], eta)
    x = start()
    for i, t in enumerate(theirs.timesteps):
        model = network(x, t.repeat(2))
        more = {"eta": eta, "variance_noise": fresh[i], "use_clipped_model_output": True}
        x = theirs.step(model, t, x, **more).prev_sample
    torch.testing.assert_close(final, x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize("target", TARGETS)
def test_ddpm_equals_diffusers(schedule: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    c = Diffusion(schedule=schedule, timesteps=100, beta_end=0.05, target=target)
    ours = NoiseSchedule.of(c)
    theirs = reference(diffusers.DDPMScheduler, c, variance_type="fixed_small")
    theirs.alphas_cumprod = ours.alpha_bar_T
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    fresh = randomness.normal(0, "sample", [0, 1], (3, 4, 4)).double()
    module = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
    monkeypatch.setattr(module, lambda *args, **kwargs: fresh)

    x = start()
    final = SAMPLERS["ddpm"](denoiser(ours), ours, x, 0, lambda i: fresh, 0.0)
    for t in range(99, -1, -1):
        x = theirs.step(network(x, torch.tensor([t, t])), t, x).prev_sample
    torch.testing.assert_close(final, x, rtol=1e-5, atol=1e-5)


def sigmas(theirs: object, ours: NoiseSchedule) -> None:
    """diffusers keeps these schedulers' levels in fp32: give them ours in float64."""
    s = ((1 - ours.alpha_bar_T) / ours.alpha_bar_T).sqrt()
    theirs.sigmas = torch.cat([s[theirs.timesteps.long()], torch.zeros(1, dtype=torch.float64)])


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_dpm_solver_equals_diffusers_at_every_step(schedule: str, target: str, steps: int) -> None:
    c = Diffusion(schedule=schedule, timesteps=300, beta_end=0.03, target=target)
    ours = NoiseSchedule.of(c)
    kind = {"algorithm_type": "dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=300, prediction_type=TARGETS[target], timestep_spacing="trailing", **kind
    )
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == spaced_timesteps(300, steps)
    sigmas(theirs, ours)
    seen: list[Tensor] = []
    final = SAMPLERS["dpm++"](denoiser(ours, seen, clamp=False), ours, start(), steps, no_noise, 0.0)
    # From our own x at each step: diffusers steps in fp32, whose errors would add up.
    for t, x, x_next in zip(theirs.timesteps, seen, [*seen[1:], final], strict=True):
        stepped = theirs.step(network(x, t.repeat(2)), t, x).prev_sample
        torch.testing.assert_close(x_next, stepped.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", KINDS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_sde_dpm_solver_equals_diffusers_at_every_step(schedule: str, target: str, steps: int) -> None:
    c = Diffusion(schedule=schedule, timesteps=300, beta_end=0.03, target=target)
    ours = NoiseSchedule.of(c)
    kind = {"algorithm_type": "sde-dpmsolver++", "solver_order": 2, "final_sigmas_type": "zero"}
    theirs = diffusers.DPMSolverMultistepScheduler(
        num_train_timesteps=300, prediction_type=TARGETS[target], timestep_spacing="trailing", **kind
    )
    levels = logsnr_timesteps(ours, steps)
    theirs.set_timesteps(timesteps=levels)
    sigmas(theirs, ours)
    seen: list[Tensor] = []
    fresh = [torch.randn_like(start()) for _ in levels]
    sampler = SAMPLERS["dpm++sde"]
    final = sampler(denoiser(ours, seen, clamp=False), ours, start(), steps, lambda i: fresh[i], 1.0)
    for i, (t, x, x_next) in enumerate(zip(theirs.timesteps, seen, [*seen[1:], final], strict=True)):
        stepped = theirs.step(network(x, t.repeat(2)), t, x, variance_noise=fresh[i]).prev_sample
        torch.testing.assert_close(x_next, stepped.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("schedule", KINDS)
def test_logsnr_timesteps_are_even_and_distinct(schedule: str) -> None:
    ours = NoiseSchedule.of(Diffusion(schedule=schedule, timesteps=1000, target="v"))
    ts = logsnr_timesteps(ours, 20)
    assert ts[0] == 999 and len(ts) == 20 and sorted(set(ts), reverse=True) == ts
    gaps = torch.log(ours.snr[ts][1:] / ours.snr[ts][:-1])[1:]  # the first may begin below LAMBDA_MIN
    assert float(gaps.max() / gaps.min()) < 1.6  # there are only so many levels to choose from
    assert len(logsnr_timesteps(ours, 1000)) <= 1000


@pytest.mark.parametrize("schedule", ["linear", "sigmoid"])  # diffusers' Heun bursts on cosine's first step
@pytest.mark.parametrize("target", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 2, 10, 20])
def test_heun_equals_diffusers(schedule: str, target: str, steps: int) -> None:
    c = Diffusion(schedule=schedule, timesteps=300, beta_end=0.03, target=target)
    ours = NoiseSchedule.of(c)
    theirs = diffusers.HeunDiscreteScheduler(
        num_train_timesteps=300, prediction_type=TARGETS[target], timestep_spacing="trailing"
    )
    theirs.set_timesteps(steps)
    levels = torch.tensor([*spaced_timesteps(300, steps)])
    s = ((1 - ours.alpha_bar_T) / ours.alpha_bar_T).sqrt()[levels]
    theirs.sigmas = torch.cat([s[:1], s[1:].repeat_interleave(2), torch.zeros(1, dtype=torch.float64)])
    final = SAMPLERS["heun"](denoiser(ours, clamp=False), ours, start(), steps, no_noise, 0.0)
    x = start() * (1 + s[0] ** 2).sqrt()  # diffusers walks in x / sqrt(alpha_bar)
    for t in theirs.timesteps:
        scaled = theirs.scale_model_input(x, t)
        x = theirs.step(network(scaled, t.long().repeat(2)), t, x).prev_sample
    torch.testing.assert_close(final, x, rtol=1e-5, atol=1e-5)


MEAN, STD = 0.4, 0.5


def gaussian_denoiser(schedule: NoiseSchedule) -> Denoiser:
    """E[x_0 | x_t] for x_0 ~ N(MEAN, STD^2), by Bayes' rule for Gaussians."""

    def denoise(x: Tensor, t: int) -> Tensor:
        alpha_bar = schedule.alpha_bar_T[t]
        gain = alpha_bar.sqrt() * STD**2 / (alpha_bar * STD**2 + 1 - alpha_bar)
        return MEAN + gain * (x - alpha_bar.sqrt() * MEAN)

    return denoise


def transported(sampler: str, schedule: NoiseSchedule, steps: int) -> tuple[float, float]:
    """Mean and standard deviation that a deterministic sampler gives N(0, 1): its map is affine."""
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    at0, at1 = SAMPLERS[sampler](gaussian_denoiser(schedule), schedule, ends, steps, no_noise, 0.0).flatten()
    return at0.item(), (at1 - at0).item()


def exact(schedule: NoiseSchedule) -> tuple[float, float]:
    """Where the probability flow takes N(0, 1), level by level: x keeps its quantile."""
    alpha_bar = schedule.alpha_bar_T[-1].item()
    std_T = math.sqrt(alpha_bar * STD**2 + 1 - alpha_bar)
    return MEAN - math.sqrt(alpha_bar) * MEAN * STD / std_T, STD / std_T


# Fine, so that the levels' own spacing is far below the steps' errors, and with small first betas: else the
# last step, which is of first order in all samplers, would hide the order of the others.
FINE = NoiseSchedule.of(Diffusion(schedule="linear", timesteps=64_000, beta_start=1e-10, beta_end=3e-4))


@pytest.mark.parametrize(
    ("sampler", "order", "steps"),
    # dpm++ gets there late: its errors change sign while the steps are long.
    [
        ("ddim", 1, (40, 80, 160)),
        ("heun", 2, (40, 80, 160)),
        ("dpm++", 2, (640, 1280, 2560)),
        ("unipc", 3, (80, 160, 320)),
    ],
)
def test_samplers_reach_the_true_gaussian_at_their_order(
    sampler: str, order: int, steps: tuple[int, ...]
) -> None:
    mean, std = exact(FINE)
    errors = []
    for count in steps:
        got = transported(sampler, FINE, count)
        errors.append(abs(got[0] - mean) + abs(got[1] - std))
    assert errors[-1] < (1e-2 if order == 1 else 3e-4)
    for coarse, fine in itertools.pairwise(errors):
        assert 2**order * 0.75 < coarse / fine < 2**order * 1.25


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++", "unipc"])
@pytest.mark.parametrize("schedule", KINDS)
def test_every_schedule_comes_near_the_true_gaussian(sampler: str, schedule: str) -> None:
    levels = NoiseSchedule.of(Diffusion(schedule=schedule))
    mean, std = transported(sampler, levels, 20)
    assert abs(mean - exact(levels)[0]) + abs(std - exact(levels)[1]) < 0.08


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpm++"])
def test_twenty_steps_come_near_the_true_gaussian(sampler: str) -> None:
    mean, std = transported(sampler, FINE, 20)
    assert abs(mean - exact(FINE)[0]) + abs(std - exact(FINE)[1]) < (0.07 if sampler == "ddim" else 0.02)


def test_ancestral_sampling_reaches_the_true_gaussian() -> None:
    schedule = NoiseSchedule.of(Diffusion(schedule="cosine", timesteps=500))
    generator = torch.manual_seed(0)
    shape = (20_000, 1, 1, 1)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)

    def fresh(step: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x0 = SAMPLERS["ddpm"](gaussian_denoiser(schedule), schedule, noise, 0, fresh, 0.0)
    assert abs(x0.mean() - MEAN) < 0.015 and abs(x0.std() - STD) < 0.015


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "heun", "unipc"])
@pytest.mark.parametrize("target", ["v", "x0"])
def test_zero_terminal_snr(sampler: str, target: str) -> None:
    c = Diffusion(timesteps=300, beta_end=0.008, target=target, zero_terminal_snr=True)
    schedule = NoiseSchedule.of(c)
    theirs = rescale_zero_terminal_snr(linear := torch.linspace(1e-4, 0.008, 300, dtype=torch.float64))
    torch.testing.assert_close(schedule.alpha_bar_T, torch.cumprod(1 - theirs, 0), rtol=1e-9, atol=1e-12)
    assert schedule.alpha_bar_T[-1] == 0 and schedule.alpha_bar_T[0] == 1 - linear[0]
    final = SAMPLERS[sampler](denoiser(schedule), schedule, start(), 20, no_noise, 0.0)
    assert final.isfinite().all()
    mean, std = transported(sampler, schedule, 100)
    assert mean == pytest.approx(MEAN, abs=0.02) and std == pytest.approx(STD, abs=0.02)


@given(scale=st.floats(0.1, 2.0), schedule=st.sampled_from(list(KINDS)))
@settings(max_examples=20, deadline=None)
def test_input_scale_moves_log_snr(scale: float, schedule: str) -> None:
    plain = NoiseSchedule.of(Diffusion(schedule=schedule, timesteps=50, target="v"))
    scaled = NoiseSchedule.of(Diffusion(schedule=schedule, timesteps=50, target="v", input_scale=scale))
    shift = scaled.snr.log() - plain.snr.log()
    torch.testing.assert_close(shift, torch.full_like(shift, 2 * math.log(scale)))
    images = start().clamp(-1, 1)
    torch.testing.assert_close(scaled.unscale(scaled.clamp(scaled.scale(images))), images)


def test_a_schedule_that_destroys_the_image_is_told() -> None:
    steep = NoiseSchedule.of(Diffusion(timesteps=500, beta_start=1e-4, beta_end=0.2))
    gentle = NoiseSchedule.of(Diffusion(timesteps=300, beta_start=1e-4, beta_end=0.008))
    assert (
        0.5 < steep.wasted < 0.65 and len(steep.warnings) == 1 and f"{steep.wasted:.0%}" in steep.warnings[0]
    )
    assert gentle.wasted == 0 and "last noise level" in gentle.warnings[0]
    for schedule in ("linear", "cosine"):
        assert NoiseSchedule.of(Diffusion(schedule=schedule)).warnings == []


@pytest.mark.parametrize("target", TARGETS)
def test_min_snr_weighs_the_error_of_x0(target: str) -> None:
    schedule = NoiseSchedule.of(Diffusion(target=target))
    x0, error = start()[:1], 1e-3 * torch.randn(1, 3, 4, 4, dtype=torch.float64)
    for t in (0, 100, 500, 999):
        t_B = torch.tensor([t])
        x_t = schedule.diffuse(x0, torch.ones_like(x0), t_B)
        exact_target = schedule.target_of(x0, torch.ones_like(x0), t_B)
        x0_error = schedule.x0_of(exact_target + error, x_t, t_B) - x0
        wanted = schedule.snr[t].clamp(max=5) * x0_error.square().mean()
        torch.testing.assert_close(WEIGHTS["min_snr"](schedule)[t] * error.square().mean(), wanted)


@given(timesteps=st.integers(1, 2000), data=st.data())
def test_spaced_timesteps(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    ts = spaced_timesteps(timesteps, steps)
    assert len(ts) == steps and ts[0] == timesteps - 1
    assert all(a > b >= 0 for a, b in itertools.pairwise(ts))


PLAIN = NoiseSchedule.of(Diffusion(target="x0"))


def conditioned(x: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
    shift = labels_BA.sum(1) * keep_B
    return torch.sin(x + shift.view(-1, 1, 1, 1) + t_B.view(-1, 1, 1, 1))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_guidance_is_the_formula_of_two_passes(scale: float) -> None:
    x, labels_BA = torch.randn(3, 2, 4, 4), torch.tensor([[1], [2], [3]])
    t_B, keep = torch.full((3,), 7), torch.ones(3, dtype=torch.bool)
    conditional, unconditional = (conditioned(x, t_B, labels_BA, k) for k in (keep, ~keep))
    expected = unconditional + scale * (conditional - unconditional)
    got = guided(conditioned, PLAIN, labels_BA, scale, clamp=False)(x, 7)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(guided(conditioned, PLAIN, labels_BA, scale)(x, 7), expected.clamp(-1, 1))


def test_guidance_rescale_gives_the_contrast_back() -> None:
    x, labels_BA = torch.randn(3, 2, 4, 4), torch.tensor([[1], [2], [3]])
    plain = guided(conditioned, PLAIN, labels_BA, 1.0, clamp=False)(x, 7)
    strong = guided(conditioned, PLAIN, labels_BA, 6.0, clamp=False)(x, 7)
    std = [y.flatten(1).std(1).view(-1, 1, 1, 1) for y in (plain, strong)]
    for share in (0.7, 1.0):
        got = guided(conditioned, PLAIN, labels_BA, 6.0, rescale=share, clamp=False)(x, 7)
        torch.testing.assert_close(got, share * strong * std[0] / std[1] + (1 - share) * strong)
    torch.testing.assert_close(got.flatten(1).std(1), plain.flatten(1).std(1))


def test_guidance_acts_in_its_interval() -> None:
    x, labels_BA = torch.randn(3, 2, 4, 4), torch.tensor([[1], [2], [3]])
    part = guided(conditioned, PLAIN, labels_BA, 4.0, interval=(0.2, 0.8))
    for t, scale in {0: 1.0, 199: 1.0, 200: 4.0, 799: 4.0, 800: 1.0, 999: 1.0}.items():
        torch.testing.assert_close(part(x, t), guided(conditioned, PLAIN, labels_BA, scale)(x, t))


@given(seed=st.integers(0, 2**63 - 1), positions=st.lists(st.integers(0, 2**62), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None)
def test_draws_depend_on_seed_and_position_alone(seed: int, positions: list[int]) -> None:
    def at(some: list[int]) -> randomness.Draws:
        return randomness.Draws.at(some, seed=seed, timesteps=1000, label_dropout=0.3, shape=(3, 4, 4))

    together = at(positions)
    for i, position in enumerate(positions):
        alone = at([position])
        assert together.t_B[i] == alone.t_B[0] and together.keep_B[i] == alone.keep_B[0]
        assert torch.equal(together.eps_BCHW[i], alone.eps_BCHW[0])
    other = randomness.Draws.at(positions, seed=seed ^ 1, timesteps=1000, label_dropout=0.3, shape=(3, 4, 4))
    assert not torch.equal(together.eps_BCHW, other.eps_BCHW)


def test_draws_have_the_right_distributions() -> None:
    draws = randomness.Draws.at(range(4000), seed=3, timesteps=10, label_dropout=0.1, shape=(3, 2, 2))
    counts = torch.bincount(draws.t_B, minlength=10)
    assert counts.min() > 320 and counts.max() < 480  # 400 each, standard deviation 19
    assert abs(draws.keep_B.float().mean() - 0.9) < 0.02
    assert abs(draws.eps_BCHW.mean()) < 0.02 and abs(draws.eps_BCHW.std() - 1) < 0.02
    rows = draws.eps_BCHW.flatten(1)
    assert rows.unique(dim=0).shape == rows.shape


def test_streams_and_steps_do_not_meet() -> None:
    uses = [(stream, step) for stream in randomness.STREAMS for step in (0, 1, 2)]
    noise = torch.stack([randomness.normal(0, stream, [5], (64,), step)[0] for stream, step in uses])
    assert noise.unique(dim=0).shape == noise.shape
    assert (torch.corrcoef(noise) - torch.eye(len(uses))).abs().max() < 0.5
