"""A rank's micro batches: mirrored where the config says so, the same at every world size and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.diffusion import NEWEST_DRAWS
from diffcore.config.tree import Config
from diffcore.diffusion.pixels import to_pixels
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.timesteps import probabilities
from diffcore.engine.ranks import World
from diffcore.runs.data import first_samples, training_reader
from diffcore.training.batches import Samples, made, micro_batches, positions_of, read_samples
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.positions.flip import flipped
from tests.support.tiny_set import noisy_pictures

STEPS, SIZE = 6, 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy pictures."""
    folder = tmp_path_factory.mktemp("set")
    pack(noisy_pictures(folder / "source", 20, 8), folder / "out", Settings(size=8, val=0.2, shard_size=2))
    return folder / "out"


def config_of(shards: Path, flip: bool, order: str = "auto") -> Config:
    overrides = {
        "data": {"path": shards, "flip": flip, "order": order},
        "batch": {"size": SIZE, "micro": 2},
        "seed": 3,
    }
    return configure.load(REPOSITORY / "configs" / "demo-adamw.yaml", overrides)


def stream(config: Config, world: int = 1, start: int = 0) -> NDArray[np.uint8]:
    """Pixels of the steps from ``start`` on in the order of their positions."""
    places, images = [], []
    accumulation = SIZE // 2 // world
    for rank in range(world):
        with training_reader(config) as reader:
            place = World(rank, world, 0, torch.device("cpu"))
            for k, batch in enumerate(micro_batches(config, reader, place, start, STEPS)):
                step, micro_step = divmod(k, accumulation)
                places += positions_of(step, micro_step, rank, world, 2, SIZE, reader.order.name).tolist()
                images += list(to_pixels(batch.images))
    return np.stack([images[i] for i in np.argsort(places)])


@pytest.mark.parametrize("order", ["auto", "block", "streams"])
def test_half_are_mirrored_whatever_the_world_and_the_resume(shards: Path, order: str) -> None:
    config = config_of(shards, flip=True, order=order)
    plain, found = stream(config_of(shards, flip=False, order=order)), stream(config)
    mirrored = flipped(3, np.arange(STEPS * SIZE))
    assert 0.3 < mirrored.mean() < 0.7
    for before, after, is_mirrored in zip(plain, found, mirrored, strict=True):
        assert np.array_equal(after, np.fliplr(before) if is_mirrored else before)
    for world in (2, 4):
        assert np.array_equal(stream(config, world), found)
        assert np.array_equal(stream(config, world, start=4), found[4 * SIZE :])


def drawn(config: Config, device: str = "cpu", world: int = 1, start: int = 0) -> list[Tensor]:
    """Timesteps, noise, drops and labels of the steps from ``start`` on, in the order of their positions."""
    found: dict[int, tuple[Tensor, ...]] = {}
    accumulation = SIZE // 2 // world
    for rank in range(world):
        with training_reader(config) as reader:
            place = World(rank, world, 0, torch.device(device))
            for k, batch in enumerate(micro_batches(config, reader, place, start, STEPS)):
                step, micro_step = divmod(k, accumulation)
                first = (start + step) * SIZE + (micro_step * world + rank) * 2
                d = batch.draws
                for row, parts in enumerate(zip(d.t_B, d.eps_BCHW, d.keep_B, batch.labels, strict=True)):
                    found[first + row] = parts
    return [torch.stack(column) for column in zip(*(found[place] for place in sorted(found)), strict=True)]


def assert_equal(some: list[Tensor], others: list[Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


@pytest.mark.parametrize("version", [1, 2])
def test_each_version_of_the_draws_is_of_the_position_alone(shards: Path, version: int) -> None:
    config = configure.replace(config_of(shards, flip=False), "diffusion", {"draws": version})
    found = drawn(config)
    places, d = range(STEPS * SIZE), config.diffusion
    rest: Any = {"seed": 3, "timesteps": d.timesteps, "label_dropout": d.label_dropout, "shape": (3, 8, 8)}
    wanted = Draws.at(places, **rest) if version == 1 else Draws.on_device(torch.tensor(places), **rest)
    assert_equal(found[:3], [wanted.t_B, wanted.eps_BCHW, wanted.keep_B])
    assert_equal(drawn(config, world=2), found)
    assert_equal(drawn(config, world=4, start=4), [x[4 * SIZE :] for x in found])


def test_levels_drawn_otherwise_are_of_the_position_and_the_step_alone(shards: Path) -> None:
    more = {"timestep_density": "log_normal", "timestep_stratified": True}
    config = configure.replace(config_of(shards, flip=False), "diffusion", more)
    found, plain = drawn(config), drawn(config_of(shards, flip=False))
    assert_equal(found[1:], plain[1:])
    assert not torch.equal(found[0], plain[0])
    assert_equal(drawn(config, world=2), found)
    assert_equal(drawn(config, world=4, start=4), [x[4 * SIZE :] for x in found])
    # Each step of SIZE samples has one in every SIZE-th part of the distribution, from some offset on.
    below_T = probabilities(config.diffusion).cumsum(0)
    for t_B in found[0].split(SIZE):
        counts = torch.bincount(t_B, minlength=config.diffusion.timesteps)
        assert (counts.cumsum(0) - SIZE * below_T).abs().max() < 1 + 1e-6


def test_a_config_without_a_version_has_the_newest(shards: Path) -> None:
    config = config_of(shards, flip=False)
    newest = configure.replace(config, "diffusion", {"draws": NEWEST_DRAWS})
    assert config.diffusion.draws is None
    assert_equal(drawn(config), drawn(newest))


class Copies(TorchDispatchMode):
    """Operations between the CPU and another device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        leaves = tree_leaves((args, kwargs, result))
        if len({leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)}) > 1:
            self.found.append(str(func))
        return result


def test_a_micro_batch_is_made_without_a_word_to_the_host(shards: Path) -> None:
    """On a device without numbers to read (meta): no reads, and no copies once the constants are there."""
    config = config_of(shards, flip=False)
    with training_reader(config) as reader:
        samples = read_samples(config, reader, np.arange(4))
    there = Samples(*(x.to("meta") for x in samples.tensors))
    made(config, there)
    with Copies() as copies:
        batch = made(config, there)
        samples.pixels.to("meta")
    assert len(copies.found) == 1  # the last line's
    here = made(config, samples)
    for a, b in zip(batch.tensors, here.tensors, strict=True):
        assert a.device.type == "meta" and a.shape == b.shape and a.dtype == b.dtype


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("version", [1, 2])
def test_a_gpu_has_the_same_micro_batches_and_waits_for_none(shards: Path, version: int) -> None:
    config = configure.replace(config_of(shards, flip=True), "diffusion", {"draws": version})
    here = drawn(config)
    drawn(config, "cuda")  # constants are copied once
    torch.cuda.set_sync_debug_mode("error")
    try:
        there = drawn(config, "cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    t_B, noise, keep_B, labels = (x.cpu() for x in there)
    assert_equal([t_B, keep_B, labels], [here[0], here[2], here[3]])
    torch.testing.assert_close(noise, here[1], rtol=0, atol=2e-6)


def test_held_out_images_are_never_mirrored(shards: Path) -> None:
    one, other = (first_samples(config_of(shards, flip), "val", 9) for flip in (True, False))
    assert one.keys == other.keys and np.array_equal(one.images, other.images)
