"""The loss on held-out images: each rank reads and holds its share, and no figure changes by that."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.diffusion.loss import denoising_loss, uniform
from diffcore.diffusion.pixels import to_signal
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ranks import World
from diffcore.runs.data import first_samples
from diffcore.training import validation
from diffcore.training.validation import Validation
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import Batch, Positions, ShardReader
from shards.table import Index
from tests.support.tiny_set import noisy_pictures


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty noisy pictures, of which some are held out."""
    folder = tmp_path_factory.mktemp("set")
    pack(noisy_pictures(folder / "source", 40, 8), folder / "out", Settings(size=8, val=0.4, shard_size=4))
    return folder / "out"


class Network:
    """Stands for the engine: its prediction of an image depends on all that a network is given."""

    def __init__(self, world: World, micro: int) -> None:
        self.world, self.micro = world, micro

    def __call__(self, x_BCHW: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        of_labels_B = (labels_BA.sum(1) + keep_B) / 3
        return x_BCHW.sin() * (1 + t_B / 100 + of_labels_B)[:, None, None, None]


def config_of(shards: Path, samples: int) -> Config:
    values = {"data": {"path": shards}, "validation": {"samples": samples}}
    return configure.load(REPOSITORY / "configs" / "demo.yaml", values)


def whole_total(config: Config, count: int, rank: int, world: int, micro: int) -> Tensor:
    """The rank's sum where it holds every image, with a wrapped run of numbers for each pass."""
    read, schedule = first_samples(config, "val", count), NoiseSchedule.of(config.diffusion)
    images, total = to_signal(read.images), torch.zeros(1, dtype=torch.float64)
    # fmt: off
    draws = Draws.at(range(count), seed=0, timesteps=config.diffusion.timesteps, label_dropout=0.0,
                     shape=images.shape[1:], stream="validation")
    # fmt: on
    network = Network(World(rank, world, 0, torch.device("cpu")), micro)
    for first in range(rank * micro, micro * world * -(-count // (micro * world)), micro * world):
        numbers = torch.arange(first, first + micro)
        rows = numbers % count
        some = Draws(draws.t_B[rows], draws.eps_BCHW[rows], draws.keep_B[rows])
        labels = torch.from_numpy(read.labels)[rows]
        error_B = denoising_loss(network, schedule, uniform(schedule), images[rows], labels, some)
        total += (error_B.double() * (numbers < count)).sum()
    return total


@pytest.fixture
def reads() -> Iterator[list[list[int]]]:
    """The positions of every read."""
    seen: list[list[int]] = []

    def read(self: ShardReader, positions: Positions, true: Any = ShardReader.read) -> Batch:
        seen.append(list(positions))
        result: Batch = true(self, positions)
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ShardReader, "read", read)
        yield seen


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(samples=st.integers(1, 20), world=st.integers(1, 5), micro=st.integers(1, 6))
def test_a_rank_reads_its_share_and_sums_as_if_it_held_all(
    shards: Path, reads: list[list[int]], samples: int, world: int, micro: int
) -> None:
    config, index = config_of(shards, samples), Index.load(shards)
    count = min(samples, len(index.split("val")))
    shares, totals = [], []
    for rank in range(world):
        reads.clear()
        place = World(rank, world, 0, torch.device("cpu"))
        part = Validation(config, index, place, micro)
        [mine] = reads
        shares += mine
        most = micro * -(-count // (micro * world))
        assert len(mine) == len(part._images.images) <= min(most, count)
        engine: Any = Network(place, micro)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(validation, "sum_over_ranks", lambda total: total)
            totals.append(part.loss(engine))
        assert totals[-1] == whole_total(config, count, rank, world, micro).item() / count  # every bit
    assert set(shares) == set(range(count))
    assert len(set(totals)) > 1 or world == 1 or count == 1


def test_without_held_out_images_nothing_is_read(shards: Path, reads: list[list[int]]) -> None:
    index: Any = SimpleNamespace(split=lambda name: [])
    assert Validation(config_of(shards, 8), index, World(0, 1, 0, torch.device("cpu")), 2).count == 0
    assert not reads
