"""Schedules and samplers against diffusers' schedulers of the same name, in float64."""

from __future__ import annotations

import itertools

import diffusers
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffcore.config import Diffusion
from diffcore.diffusion import randomness
from diffcore.diffusion.guidance import guided
from diffcore.diffusion.samplers import SAMPLERS, spaced_timesteps
from diffcore.diffusion.schedule import NoiseSchedule

KINDS = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
TARGETS = {"eps": "epsilon", "v": "v_prediction"}


def reference(kind: type, c: Diffusion, **more: object) -> object:
    return kind(
        num_train_timesteps=c.timesteps,
        beta_start=c.beta_start,
        beta_end=c.beta_end,
        beta_schedule=KINDS[c.schedule],
        prediction_type=TARGETS[c.target],
        clip_sample=True,
        timestep_spacing="trailing",
        **more,
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

    x_T = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    seen: list[Tensor] = []

    def watched(x: Tensor, t_B: Tensor) -> Tensor:
        seen.append(x)
        return network(x, t_B)

    final = SAMPLERS["ddim"](watched, ours, x_T, steps, lambda i: torch.zeros_like(x_T))
    x = x_T
    for i, t in enumerate(theirs.timesteps):
        torch.testing.assert_close(seen[i], x, rtol=1e-5, atol=1e-5)
        x = theirs.step(network(x, t.repeat(2)), t, x, use_clipped_model_output=True).prev_sample
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

    x = x_T = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.manual_seed(1))
    final = SAMPLERS["ddpm"](network, ours, x_T, 0, lambda i: fresh)
    for t in range(99, -1, -1):
        x = theirs.step(network(x, torch.tensor([t, t])), t, x).prev_sample
    torch.testing.assert_close(final, x, rtol=1e-5, atol=1e-5)


@given(timesteps=st.integers(1, 2000), data=st.data())
def test_spaced_timesteps(timesteps: int, data: st.DataObject) -> None:
    steps = data.draw(st.integers(1, timesteps))
    ts = spaced_timesteps(timesteps, steps)
    assert len(ts) == steps and ts[0] == timesteps - 1
    assert all(a > b >= 0 for a, b in itertools.pairwise(ts))


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0, 7.5])
def test_guidance_is_the_formula_of_two_passes(scale: float) -> None:
    def net(x: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        shift = labels_BA.sum(1) * keep_B
        return torch.sin(x + shift.view(-1, 1, 1, 1) + t_B.view(-1, 1, 1, 1))

    x, t_B, labels_BA = torch.randn(3, 2, 4, 4), torch.tensor([1, 2, 3]), torch.tensor([[1], [2], [3]])
    keep = torch.ones(3, dtype=torch.bool)
    conditional, unconditional = net(x, t_B, labels_BA, keep), net(x, t_B, labels_BA, ~keep)
    expected = unconditional + scale * (conditional - unconditional)
    torch.testing.assert_close(guided(net, labels_BA, scale)(x, t_B), expected)


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
