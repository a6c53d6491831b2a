"""Stages of a run on smaller images: which step is in which, what its images, noise and loss are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.stages import Stage, check, spans
from diffcore.config.tree import Config, Diffusion
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ranks import World
from diffcore.models.flops import training_flops
from diffcore.runs.data import training_reader
from diffcore.training.batches import MicroBatch, micro_batches, positions_of
from diffcore.training.objective import Objective, Work
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.schema import CARTOON_SET
from tests.support.tiny_set import noisy_pictures

CPU = torch.device("cpu")
BATCH, PACKED = 8, 16
STAGES = [{"side": 4, "until": 2}, {"side": 8, "until": 5}]
DEMO = REPOSITORY / "configs" / "demo-adamw.yaml"


def config_of(data: Path | str = "nowhere", stages: Any = STAGES, steps: int = 7, **diffusion: Any) -> Config:
    overrides = {
        "data": {"path": data},
        "model": {"channels": [8, 8], "attention_levels": [1], "heads": 2, "patch": 2},
        "batch": {"size": BATCH, "micro": 2},
        "train": {"steps": steps, "stages": stages},
        "diffusion": diffusion,
    }
    return configure.load(DEMO, overrides)


@st.composite
def some_stages(draw: st.DrawFn) -> tuple[Stage, ...]:
    count = draw(st.integers(0, 4))
    rising: Any = {"min_size": count, "max_size": count, "unique": True}
    sides = sorted(draw(st.lists(st.integers(1, 64), **rising)))
    ends: Any = st.integers(1, 100) if draw(st.booleans()) else st.floats(0.01, 0.99)
    until = sorted(draw(st.lists(ends, **rising)))
    return tuple(Stage(side=s, until=u) for s, u in zip(sides, until, strict=True))


@given(stages=some_stages(), steps=st.integers(1, 120))
def test_every_step_is_in_one_stage_and_their_images_grow(stages: tuple[Stage, ...], steps: int) -> None:
    found = spans(stages, steps)
    assert [step for span in found for step in range(span.first, span.end)] == list(range(steps))
    assert all(span.first < span.end for span in found)
    sides = [span.side(100) for span in found]
    assert sides == sorted(set(sides))
    for span in found:
        if span.stage:
            until = span.stage.until
            assert span.end == min(steps, until if isinstance(until, int) else round(until * steps))
    assert spans(stages, 0) == [(0, 0, None)]


@given(stages=some_stages(), steps=st.integers(1, 120), more=st.integers(0, 50))
def test_where_stages_end_at_steps_a_longer_run_begins_alike(
    stages: tuple[Stage, ...], steps: int, more: int
) -> None:
    if any(isinstance(stage.until, float) for stage in stages):
        return
    pair = [
        configure.load(DEMO, {"train": {"steps": n, "stages": stages}}).train for n in (steps, steps + more)
    ]
    assert all(pair[0].side(step, 100) == pair[1].side(step, 100) for step in range(steps))


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([{"side": 8, "until": 1.5}], "until: neither a step nor a share"),
        ([{"side": 8, "until": 0}], "until: neither a step nor a share"),
        ([{"side": 8, "until": True}], "until: neither a step nor a share"),
        ([{"side": 8, "until": 5}, {"side": 4, "until": 6}], "side and until must rise"),
        ([{"side": 4, "until": 5}, {"side": 8, "until": 5}], "side and until must rise"),
        ([{"side": 4, "until": 5}, {"side": 8, "until": 0.9}], "all of them steps, or all shares"),
        ([{"side": 4, "until": 5, "till": 5}], "unknown key 'train.stages.0.till' (did you mean 'until'?)"),
    ],
)
def test_bad_stages_are_one_line(stages: Any, words: str) -> None:
    with pytest.raises(InputError) as error:
        config_of(stages=stages)
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("side", [1, 6, 12, 16, 32])
def test_a_side_that_the_images_or_the_network_lack_is_one_line(side: int) -> None:
    config = config_of(stages=[{"side": side, "until": 3}])
    with pytest.raises(InputError, match=r"stages\.0\.side: \d+; allowed with images of 16 .*: 4, 8$"):
        check(config.train.stages, config.model, PACKED)
    check(config_of().train.stages, config.model, PACKED)


@given(edge=st.integers(1, 5), side=st.integers(1, 6), seed=st.integers(0, 99))
@settings(deadline=None)
def test_a_pixel_is_the_mean_of_a_square(edge: int, side: int, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (2, side * edge, side * edge, 3), np.uint8)
    mean = pixels.astype(np.float64).reshape(2, side, edge, side, edge, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    found = to_signal(pixels, side)
    assert found.shape == (2, 3, side, side) and found.dtype == torch.float32
    # A quotient and a difference, each within half a unit in the last place of a number of 2 at most.
    assert np.abs(found.numpy() - (mean / 127.5 - 1)).max() <= 2 * 2.0**-24 * 2
    if edge == 1:
        assert torch.equal(found, to_signal(pixels))


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("factor", [2, 4])
def test_the_shift_is_that_of_averaged_noise(schedule: Any, factor: int) -> None:
    """Averaged in squares, an x_t of the packed image is one of the small image in the shifted schedule."""
    c = Diffusion(schedule=schedule, target="v")
    full = NoiseSchedule.of(c)
    shifted = full.shifted(factor)
    # Four roundings in alpha_bar, of which 1 - alpha_bar keeps all.
    allowed_T = 4 * 2.0**-53 / (1 - shifted.alpha_bar_T)
    assert ((shifted.snr / (factor**2 * full.snr) - 1).abs() <= allowed_T).all()
    x0, eps = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    t_B = torch.tensor([0, 300, 700, 999])
    averaged = F.avg_pool2d(full.diffuse(x0, eps, t_B), factor)
    # The mean of n independent normals, times sqrt(n), is a standard normal.
    small, noise = F.avg_pool2d(x0, factor), factor * F.avg_pool2d(eps, factor)
    alpha = full.alpha_bar_T[t_B].view(-1, 1, 1, 1)
    scale = (alpha + (1 - alpha) / factor**2).rsqrt()
    torch.testing.assert_close(scale * averaged, shifted.diffuse(small, noise, t_B), rtol=1e-10, atol=1e-10)
    assert torch.equal(full.shifted(1).alpha_bar_T, full.alpha_bar_T)


def test_a_level_of_pure_noise_stays_one() -> None:
    full = NoiseSchedule.of(Diffusion(target="v", zero_terminal_snr=True))
    assert full.shifted(2).alpha_bar_T[-1] == 0 == full.alpha_bar_T[-1]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set")
    wanted = Settings(size=PACKED, val=0.2, shard_size=4)
    pack(noisy_pictures(folder / "source", 20, PACKED), folder / "out", wanted)
    return folder / "out"


def stream(config: Config, world: int = 1, start: int = 0) -> dict[int, list[Tensor]]:
    """Image, label, timestep, noise and keep at each position of the steps from ``start`` on."""
    found: dict[int, list[Tensor]] = {}
    accumulation = BATCH // 2 // world
    for rank in range(world):
        with training_reader(config) as reader:
            place = World(rank, world, 0, CPU)
            for k, batch in enumerate(micro_batches(config, reader, place, start, config.train.steps)):
                step, micro_step = divmod(k, accumulation)
                places = positions_of(start + step, micro_step, rank, world, 2, BATCH, reader.order.name)
                for row, position in enumerate(places.tolist()):
                    found[position] = [tensor[row] for tensor in batch.tensors]
    return found


def assert_alike(found: dict[int, list[Tensor]], wanted: dict[int, list[Tensor]]) -> None:
    assert found.keys() <= wanted.keys()
    for place, tensors in found.items():
        assert all(torch.equal(a, b) for a, b in zip(tensors, wanted[place], strict=True))


@pytest.mark.parametrize("order", ["full", "streams"])
@pytest.mark.parametrize("draws", [1, 2])
def test_a_stage_changes_images_and_noise_and_nothing_else(shards: Path, draws: int, order: str) -> None:
    """Whatever the world and wherever it resumes: samples, order, timesteps and drops are of the position."""
    own = {"draws": draws, "timesteps": 50}
    config, plain = (
        configure.replace(config_of(shards, stages, **own), "data", {"order": order})
        for stages in (STAGES, [])
    )
    found, whole = stream(config), stream(plain)
    for place, (image, label, t, noise, keep) in found.items():
        side = {0: 4, 1: 4, 2: 8, 3: 8, 4: 8, 5: 16, 6: 16}[place // BATCH]
        full, *rest = whole[place]
        pixels = ((full + 1) * 127.5).round()
        wanted = F.avg_pool2d(pixels, PACKED // side) / 127.5 - 1
        torch.testing.assert_close(image, wanted, rtol=0, atol=1e-6)
        assert torch.equal(label, rest[0]) and torch.equal(t, rest[1]) and torch.equal(keep, rest[3])
        given: Any = {"seed": 0, "timesteps": 50, "label_dropout": 0.1, "shape": (3, side, side)}
        alone = Draws.at([place], **given) if draws == 1 else Draws.on_device(torch.tensor([place]), **given)
        assert torch.equal(noise, alone.eps_BCHW[0])
    for world, start in ((2, 0), (4, 0), (1, 1), (2, 2), (1, 4), (4, 6)):
        assert_alike(stream(config, world, start), found)


def test_each_stage_has_its_schedule_and_weights(shards: Path) -> None:
    stages = [{"side": 4, "until": 2, "shift": False}, {"side": 8, "until": 5}]
    config = config_of(shards, stages, loss_weight="min_snr", timesteps=50)
    full = NoiseSchedule.of(config.diffusion)
    objective, given = Objective(config, PACKED, CPU), []

    def network(x_t: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        given.append(x_t)
        return x_t / 2

    for side, schedule in ((4, full), (8, full.shifted(2)), (16, full)):
        x0, eps = torch.randn(2, 5, 3, side, side, generator=torch.manual_seed(side))
        t_B = torch.tensor([0, 10, 20, 40, 49])
        batch = MicroBatch(x0, torch.zeros(5, 0), Draws(t_B, eps, torch.ones(5, dtype=torch.bool)))
        snr_B = schedule.snr[t_B]
        signal, noise = (
            a.view(-1, 1, 1, 1) for a in ((snr_B / (1 + snr_B)).sqrt(), (1 / (1 + snr_B)).sqrt())
        )
        x_t, v = signal * x0 + noise * eps, signal * eps - noise * x0
        error_B = ((x_t / 2 - v) ** 2).mean((1, 2, 3)) * snr_B.clamp(max=5) / (snr_B + 1)
        torch.testing.assert_close(objective(network, batch), error_B.float(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(given[-1], x_t.float(), rtol=1e-5, atol=1e-6)


def test_a_stage_is_told_once_and_its_first_window_is_known() -> None:
    objective = Objective(config_of(), PACKED, CPU)
    lines = [objective.begin(step) for step in range(7)]
    assert [step for step, line in enumerate(lines) if line] == [0, 2, 5]
    assert lines[2] == "step 2: from here on images of 8 x 8 pixels"
    back = [objective.begin(step) for step in (4, 5, 6)]  # after a rollback
    assert [line is not None for line in back] == [True, True, False]
    windows = {(first, end) for first in range(7) for end in range(first + 1, 8)}
    for first, end in windows:
        assert objective.entered(first, end) == any(step in range(first, end) for step in (2, 5))
    plain = Objective(config_of(stages=[]), PACKED, CPU)
    assert not any(plain.begin(step) for step in range(7)) and not plain.entered(0, 7)


def test_the_work_of_steps_is_the_sum_of_theirs() -> None:
    config = config_of()
    each = {side: training_flops(config.model, CARTOON_SET, side) for side in (4, 8, 16)}
    work = Work(config, CARTOON_SET, PACKED)
    steps = [4, 4, 8, 8, 8, 16, 16]
    for first in range(8):
        for end in range(first, 8):
            wanted = sum(each[side] for side in steps[first:end])
            assert work.flops(first, end) == BATCH * wanted
            if first < end:
                assert work.an_image(first, end) == wanted // (end - first)
