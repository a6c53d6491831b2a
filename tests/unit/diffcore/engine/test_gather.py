"""What ranks exchange arrives whole, in rank order, and not as a pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diffcore.engine.ranks import (
    World,
    first_problem,
    from_rank,
    gather,
    gather_arrays,
    gather_to_main,
    receive_bytes,
    send_bytes,
    side_group,
)
from diffcore.runs import draw
from tests.support.ranks import run_ranks

ALONE = World(0, 1, 0, torch.device("cpu"))


def test_one_rank_needs_no_group() -> None:
    assert gather({"a": [1, None, "ä"]}, ALONE) == [{"a": [1, None, "ä"]}]
    assert gather_to_main({"a": 1}, ALONE) == [{"a": 1}]
    assert from_rank({"a": [1, None]}, ALONE) == {"a": [1, None]}
    assert first_problem(None, ALONE) is None and first_problem("a", ALONE) == "a"
    [array] = gather_arrays(np.arange(6, dtype=np.uint8).reshape(2, 3), ALONE)
    assert array.dtype == np.uint8 and array.tolist() == [[0, 1, 2], [3, 4, 5]]


def exchange(rank: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    world = World(rank, 2, rank, torch.device("cpu"))
    draw.draw = by_position
    if rank == 0:
        send_bytes(b"", 1, None)
        send_bytes(b"some", 1, None)
    else:
        sent = receive_bytes(0, None), receive_bytes(0, None)
    values = gather(["x" * 1000 * rank, rank / 3], world)
    beside = side_group([0, 1])
    if rank == 0:
        send_bytes(b"beside", 1, beside)
    else:
        sent = *sent, receive_bytes(0, beside)
    arrays = gather_arrays(np.full((rank, 2), rank, np.float64), world)
    right = values == [["", 0.0], ["x" * 1000, 1 / 3]]
    right &= [a.tolist() for a in arrays] == [[], [[1.0, 1.0]]] and arrays[0].shape == (0, 2)
    right &= gather_to_main({"a": "x" * 50 * rank}, world) == (
        [{"a": ""}, {"a": "x" * 50}] if rank == 0 else None
    )
    for source in range(2):
        said = from_rank(["ä" * 100 * source, None, source / 3, rank], world, source)
        right &= said == ["ä" * 100 * source, None, source / 3, source]
    right &= from_rank(None if rank == 0 else "nobody hears this", world) is None
    found = [first_problem("ab"[rank] if bad >> rank & 1 else None, world) for bad in range(4)]
    right &= found == [None, "a", "b", "a"]
    right &= rank == 0 or sent == (b"", b"some", b"beside")
    right &= all(map(is_shared_right, [1, 2, 3, 5], [world] * 4))
    (folder / f"{rank}").write_text(str(right))
    torch.distributed.destroy_process_group()


def is_shared_right(count: int, world: World) -> bool:
    """Whether images that two ranks draw are those that one draws; each is its position, 250 and more."""
    given: Any = (None, None, torch.zeros(count, 1), None)
    shown = draw.draw_shared(*given, shape=(3, 2, 2), seed=0, world=world)
    return shown.dtype == np.uint8 and shown[:, 1, 1, 2].tolist() == list(range(250, 250 + count))


def by_position(_: Any, __: Any, ___: Any, places: Any, *____: Any, **_____: Any) -> Any:
    return np.stack([np.full((2, 2, 3), 250 + place, np.uint8) for place in places])


@pytest.mark.slow
def test_two_ranks_exchange_values_and_arrays_of_unlike_sizes(tmp_path: Path) -> None:
    run_ranks(exchange, range(2), tmp_path)
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == ["True", "True"]
