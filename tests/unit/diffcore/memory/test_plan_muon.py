"""What Muon keeps and works in, by ranks: nothing is lost between them, and all is given back."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffcore.memory.planning import muon
from diffcore.memory.planning.states import Sharing
from diffcore.memory.planning.stream import Stream

SHARING = Sharing(1, 2, 0, 2, 1, False, 1000, False, True, 1000, 10, 10**9, 10**9)
SHAPES = st.lists(
    st.tuples(st.booleans(), st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=8
).filter(lambda shapes: any(matrix for matrix, _, _ in shapes))


@given(shapes=SHAPES, stage=st.integers(0, 3), world=st.integers(1, 5))
def test_every_element_has_its_states_once(
    shapes: list[tuple[bool, int, int]], stage: int, world: int
) -> None:
    """4 bytes a matrix' element and 8 of the others, on all ranks together; under ZeRO-0 on each."""
    numels = [rows * columns for _, rows, columns in shapes]
    matrices = {i: (rows, columns) for i, (matrix, rows, columns) in enumerate(shapes) if matrix}
    wanted = sum(n * (4 if i in matrices else 8) for i, n in enumerate(numels))
    steps = found = 0
    for rank in range(world):
        sharing = replace(SHARING, stage=stage, world=world, rank=rank, matrices=matrices)
        sizes = muon.states(sharing, numels)
        others = len(numels) - len(matrices) if stage == 0 else int(len(sizes) > 1)
        steps += 4 * others
        found += sum(sizes)
    assert found - steps == wanted * (world if stage == 0 else 1)


@given(shapes=SHAPES, stage=st.integers(0, 3), world=st.integers(1, 5), cpu=st.booleans(), cuda=st.booleans())
def test_what_it_works_in_is_given_back(
    shapes: list[tuple[bool, int, int]], stage: int, world: int, cpu: bool, cuda: bool
) -> None:
    numels = [rows * columns for _, rows, columns in shapes]
    matrices = {i: (rows, columns) for i, (matrix, rows, columns) in enumerate(shapes) if matrix}
    offload = stage > 0
    sharing = replace(SHARING, stage=stage, world=world, matrices=matrices, cpu=cpu, offload=offload)
    stream = Stream()
    muon.work(stream, sharing, numels, cuda)
    held = set[int]()
    for number, size in stream.events:
        if size:
            held.add(number)
        else:
            held.remove(number)
    assert not held
    biggest = max(numels[i] for i in matrices)
    assert stage or max(size for _, size in stream.events) >= 4 * biggest


@pytest.mark.parametrize("cuda", [False, True])
@pytest.mark.parametrize("stage", range(4))
def test_another_optimizer_works_in_nothing(stage: int, cuda: bool) -> None:
    stream = Stream()
    muon.work(stream, replace(SHARING, stage=stage), [12, 4], cuda)
    assert not stream.events
