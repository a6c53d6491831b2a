"""What ranks exchange arrives whole, in rank order, and not as a pickle."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import torch

from diffcore.engine.ranks import World, gather, gather_arrays, side_group

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_one_rank_needs_no_group() -> None:
    assert gather({"a": [1, None, "ä"]}, ALONE) == [{"a": [1, None, "ä"]}]
    [array] = gather_arrays(np.arange(6, dtype=np.uint8).reshape(2, 3), ALONE)
    assert array.dtype == np.uint8 and array.tolist() == [[0, 1, 2], [3, 4, 5]]


def exchange(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, rank, torch.device("cpu"))
    values = gather(["x" * 1000 * rank, rank / 3], world)
    beside = gather(rank, world, side_group())
    arrays = gather_arrays(np.full((rank, 2), rank, np.float64), world)
    right = values == [["", 0.0], ["x" * 1000, 1 / 3]] and beside == [0, 1]
    right &= [a.tolist() for a in arrays] == [[], [[1.0, 1.0]]] and arrays[0].shape == (0, 2)
    (folder / f"{rank}").write_text(str(right))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_exchange_values_and_arrays_of_unlike_sizes(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=exchange, args=(rank, tmp_path)) for rank in range(2)]
    try:
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
    finally:
        for process in processes:
            process.kill()
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["True", "True"]
