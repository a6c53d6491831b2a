"""How many threads each rank of a CPU has, by the cores that the ranks beside it may run on too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from diffcore.engine import process_group
from diffcore.engine.ranks import World
from tests.support.ranks import run_ranks

NAMES = ("SLURMD_NODENAME", "NODE_RANK", "GROUP_RANK")


@pytest.mark.parametrize(
    ("cores", "threads"),
    [
        ([range(8)] * 4, [2, 2, 2, 2]),  # torchrun binds nobody
        ([range(4), range(4, 8)], [4, 4]),  # srun, or ``launch`` in a step that is bound
        ([range(6), range(6), range(6, 8)], [3, 3, 2]),
        ([range(2)] * 3, [1, 1, 1]),
    ],
)
def test_who_is_bound_to_cores_has_a_thread_for_each(
    cores: list[range], threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(process_group.socket, "gethostname", lambda: "n1")
    # Another node's, which has cores of the same numbers.
    monkeypatch.setattr(
        process_group, "gather", lambda mine, _: [[mine[0], list(own)] for own in cores] + [[["n2"], [0, 1]]]
    )
    found = []
    for rank, own in enumerate(cores):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, own=own: set(own))
        found.append(process_group._threads(World(rank, len(cores), rank, torch.device("cpu"))))
    assert found == threads


def work(rank: int, folder: Path, cores: list[int]) -> None:
    os.sched_setaffinity(0, cores[1:] if rank else cores[:1])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    threads = process_group._threads(World(rank, 2, rank, torch.device("cpu")))
    (folder / f"threads{rank}").write_text(str(threads))


def test_ranks_tell_each_other(tmp_path: Path) -> None:
    mine = sorted(os.sched_getaffinity(0))
    if len(mine) < 2:
        pytest.skip("one core")
    run_ranks(work, range(2), tmp_path, mine)
    assert [int((tmp_path / f"threads{rank}").read_text()) for rank in range(2)] == [1, len(mine) - 1]
