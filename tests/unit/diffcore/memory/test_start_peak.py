"""The planned peak of a start under ZeRO-3, beside what real DeepSpeed allocates on a fake group's ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.config.models import AvatarModel
from diffcore.config.tree import Config
from diffcore.memory.planning.start import start_peak
from diffcore.memory.planning.states import Sharing, resident
from shards.schema import CARTOON_SET
from tests.support.allocations import peak_of
from tests.support.ranks import run_ranks

WIDE = {"channels": [64, 128, 256], "attention_levels": [1, 2], "heads": 4, "tau_tokens": 4}


def config_of(world: int, precision: str, zero: int = 3) -> Config:
    engine = {"zero": zero, "precision": precision, "threads": 1}
    changes = {"model": {"kind": "avatar", **WIDE}, "engine": engine, "batch": {"micro": 1, "size": world}}
    return configure.load(REPOSITORY / "configs" / "avatar-adamw.yaml", changes)


def numels_of(model: AvatarModel) -> list[int]:
    with torch.device("meta"):
        return [parameter.numel() for parameter in models.build(model, CARTOON_SET, 64).parameters()]


def observe(rank: int, world: int, out: Path) -> None:
    """One rank of a fake group of ``world``: the most that a start allocates, by precision."""
    place = {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": str(world)}
    os.environ |= {"DS_ACCELERATOR": "cpu", "MASTER_ADDR": "127.0.0.1", **place}
    import deepspeed
    from torch.testing._internal.distributed.fake_pg import FakeStore

    from diffcore.engine import construction
    from diffcore.engine.ema import Ema
    from diffcore.engine.engine import Engine
    from diffcore.engine.ranks import World

    torch.set_num_threads(1)
    torch.distributed.init_process_group("fake", rank=rank, world_size=world, store=FakeStore())
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    peaks = {}
    for precision in ("fp32", "bf16"):
        config = config_of(world, precision)

        def start(config: Config = config) -> Ema:
            here = World(rank, world, 0, torch.device("cpu"))
            network = construction.build(lambda: models.build(config.model, CARTOON_SET, 64), config, here)
            return Ema(Engine(network, config, here), config.ema)

        _, peaks[precision] = peak_of(start)
    out.write_text(json.dumps(peaks))


@pytest.mark.slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("rank", "world"), [(0, 8), (63, 64)])
def test_the_start_is_what_deepspeed_allocates(rank: int, world: int, tmp_path: Path) -> None:
    """To within one largest parameter, where the whole network is many of them."""
    out = tmp_path / "peaks.json"
    run_ranks(observe, range(rank, rank + 1), world, out, seconds=150)
    measured = json.loads(out.read_text())
    for precision, peak in measured.items():
        config = config_of(world, precision)
        assert isinstance(config.model, AvatarModel)
        numels = numels_of(config.model)
        planned = start_peak(Sharing.of(config, world, numels, rank, cpu=True), numels)
        assert planned is not None
        assert abs(planned - peak) <= 4 * max(numels), (precision, planned, peak)
        assert 4 * sum(numels) > 9 * 4 * max(numels)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("world", [64, 1024])
def test_a_billion_parameters_start_in_what_their_steps_need(precision: str, world: int) -> None:
    config = config_of(world, precision)
    assert isinstance(config.model, AvatarModel)
    changes = {
        "channels": (768, 1536, 2304, 2880),
        "attention_levels": (1, 2, 3),
        "heads": 8,
        "tau_tokens": 8,
    }
    numels = numels_of(config.model.model_copy(update=changes))
    assert sum(numels) >= 10**9
    sharing = Sharing.of(config, world, numels, cpu=True)
    planned = start_peak(sharing, numels)
    assert planned is not None
    w, share = sharing.itemsize, sum(-(-numel // world) for numel in numels)
    # The share's states without Adam's moments, one bucket, and one parameter as it is drawn and cast.
    assert planned <= (2 * w + 8) * share + w * sharing.bucket + (4 + w) * max(numels)
    assert planned <= sum(block.size for block in resident(sharing, numels)) + (4 + w) * max(numels)
    assert planned < 4 * sum(numels) / 4  # of what the network alone would take on every rank


def test_what_is_not_planned() -> None:
    numels = [10, 20]
    for config in (
        config_of(8, "bf16", zero=2),
        configure.replace(config_of(8, "bf16"), "engine", {"offload": "parameters"}),
    ):
        assert start_peak(Sharing.of(config, 8, numels), numels) is None
