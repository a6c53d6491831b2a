"""A rank's micro batches: mirrored where the config says so, the same at every world size and resume."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.diffusion.pixels import to_pixels
from diffcore.engine.ranks import World
from diffcore.runs.data import first_samples, training_reader
from diffcore.training.batches import micro_batches, positions_of
from shards.flip import flipped
from shards.packing.packer import pack
from shards.packing.plan import Settings

STEPS, SIZE = 6, 8


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty noisy pictures."""
    folder = tmp_path_factory.mktemp("set")
    (folder / "source").mkdir()
    for number in range(20):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(pixels).save(folder / "source" / f"{number}.png")
    pack(folder / "source", folder / "out", Settings(size=8, val=0.2, shard_size=2))
    return folder / "out"


def config_of(shards: Path, flip: bool, order: str = "auto") -> Config:
    overrides = {
        "data": {"path": shards, "flip": flip, "order": order},
        "batch": {"size": SIZE, "micro": 2},
        "seed": 3,
    }
    return configure.load(REPOSITORY / "configs" / "demo.yaml", overrides)


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


def test_held_out_images_are_never_mirrored(shards: Path) -> None:
    one, other = (first_samples(config_of(shards, flip), "val", 9) for flip in (True, False))
    assert one.keys == other.keys and np.array_equal(one.images, other.images)
