"""Tensors of which every rank holds all: each element is read once, and every rank has its bits."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diffbase.cli import InputError
from diffcore.engine.filling import Slice, chunked, fill_together
from diffcore.engine.ranks import World
from tests.support.ranks import CPU, run_ranks

RANKS = 3
Key = tuple[str, str]


@given(counts=st.lists(st.integers(0, 20), max_size=10), most=st.integers(1, 9))
def test_chunks_are_the_slices_in_their_order(counts: list[int], most: int) -> None:
    slices = [("weights", f"p{i}", 3 * i, count) for i, count in enumerate(counts)]
    chunks = list(chunked(slices, most))
    elements = [(name, at) for _, name, start, count in slices for at in range(start, start + count)]
    assert elements == [
        (name, at) for chunk in chunks for _, name, start, n in chunk for at in range(start, start + n)
    ]
    sizes = [sum(count for *_, count in chunk) for chunk in chunks]
    assert all(size == most for size in sizes[:-1]) and all(0 < size <= most for size in sizes[-1:])


def files_of(seed: int) -> tuple[dict[Key, Tensor], list[Slice], int]:
    """Tensors of all bit patterns, how they lie in files, and the elements of a chunk."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    tensors, slices = {}, []
    for kind in ("weights", "ema"):
        for name in range(rng.randrange(1, 5)):
            count = rng.choice([0, 1, 2, 50, 333])
            bits = torch.randint(-(2**31), 2**31, (count,)).int()
            bits[:1] = -(2**31)  # minus zero, which a sum would lose
            tensors[kind, str(name)] = bits.view(torch.float32)
            cuts = sorted({0, count, *(rng.randrange(count + 1) for _ in range(rng.randrange(3)))})
            pairs = itertools.pairwise(cuts)
            slices += [(kind, str(name), low, high - low) for low, high in pairs]
    rng.shuffle(slices)
    return (
        tensors,
        [*slices, ("weights", "of no parameter", 0, 7)],
        5 if seed > 4 else rng.choice([1, 7, 100, 10_000]),
    )


def rank_of(rank: int, meet: Path) -> None:
    """As one of three ranks; what was read, what was wrong with the tensors and what was said."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meet}/meet", rank=rank, world_size=RANKS
    )
    world, found = World(rank, RANKS, rank, CPU), []
    for seed in range(9):
        files, slices, most = files_of(seed)
        read, wrong, said = list[Slice](), list[str](), None
        failing = seed in (5, 6) and rank == seed - 5

        def take(
            kind: str, name: str, start: int, count: int, read: list[Slice] = read, failing: bool = failing
        ) -> Tensor:
            if failing:
                raise InputError(f"damaged for rank {rank}")
            read.append((kind, name, start, count))
            return files[kind, name][start : start + count]  # noqa: B023

        held = {key: torch.empty_like(tensor) for key, tensor in files.items()}
        try:
            lacking = seed == 7 or (seed == 8 and rank == 1)
            fill_together(held, slices[1:] if lacking else slices, take, world, most)
            wrong = [
                str(key)
                for key, tensor in files.items()
                if not torch.equal(tensor.view(torch.int32), held[key].view(torch.int32))
            ]
        except InputError as error:
            said = str(error)
        found.append([read, wrong, said])
    (meet / f"{rank}").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_every_element_is_read_once_and_reaches_all(tmp_path: Path) -> None:
    run_ranks(rank_of, range(RANKS), tmp_path)
    ranks = [json.loads((tmp_path / f"{rank}").read_text()) for rank in range(RANKS)]
    for seed in range(5):
        files, _, _ = files_of(seed)
        read = sorted(
            (kind, name, at)
            for rank in ranks
            for kind, name, start, count in rank[seed][0]
            for at in range(start, start + count)
        )
        assert read == sorted((*key, at) for key, tensor in files.items() for at in range(tensor.numel()))
        assert [rank[seed][1:] for rank in ranks] == [[[], None]] * RANKS
    for rank in ranks:  # what one finds damaged is said on all
        assert rank[5][2] == "damaged for rank 0" and rank[6][2] == "damaged for rank 1"
        assert "elements, each once" in rank[7][2] and "elements, each once" in rank[8][2]
