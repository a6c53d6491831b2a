"""Muon: torch's own on matrices, the same bits however its matrices lie, and steps that are left out."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod
from typing import Any

import pytest
import torch
from deepspeed import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.orthogonal.muon import Muon, units
from diffcore.engine.orthogonal.newton_schulz import flops
from diffcore.engine.orthogonal.orthogonalization import Matrix, Orthogonalization, alike, owners
from diffcore.engine.orthogonal.pieces import pieces
from diffcore.engine.partitions import Packed, Place
from diffcore.engine.ranks import World
from tests.support.ranks import on_threads

ALONE = World(0, 1, 0, torch.device("cpu"))
SIZES = st.tuples(st.integers(1, 9), st.integers(1, 9))


class Meeting:
    """Collectives of ranks that are threads of this process."""

    def __init__(self, size: int) -> None:
        self.said: dict[int, Any] = {}
        self.barrier = threading.Barrier(size, timeout=30)
        self.rank = threading.local()

    def _exchange(self, value: Any) -> dict[int, Any]:
        self.barrier.wait()
        self.said[self.rank.number] = value
        self.barrier.wait()
        return dict(self.said)

    def all_gather_into_tensor(self, to: Tensor, of: Tensor) -> None:
        said = self._exchange(of.clone())
        to.copy_(torch.cat([said[rank] for rank in sorted(said)]))

    def all_to_all_single(
        self, to: Tensor, of: Tensor, output_split_sizes: list[int], input_split_sizes: list[int]
    ) -> None:
        said = self._exchange(of.clone().split(input_split_sizes))
        mine = [said[rank][self.rank.number] for rank in sorted(said)]
        assert [len(part) for part in mine] == output_split_sizes
        to.copy_(torch.cat(mine))


def orthogonalized(updates: Sequence[Tensor], stage: int, world: int, together: bool = False) -> list[Tensor]:
    """Of whole matrices as ``world`` ranks hold them under ``stage``, put together again."""
    sizes = {str(number): update.numel() for number, update in enumerate(updates)}
    flat = torch.cat([update.reshape(-1) for update in updates])
    where = pieces(sizes, stage, world, -(-len(flat) // (2 * world)) * 2)
    shapes = [(update.shape[0], update.shape[1]) for update in updates]
    made = [Matrix(*s, () if where is None else where[str(n)]) for n, s in enumerate(shapes)]
    meeting = Meeting(world)

    def work(place: World) -> list[Tensor]:
        meeting.rank.number = place.rank
        mine = [
            update.reshape(-1)[start : start + count]
            for matrix, update in zip(made, updates, strict=True)
            for rank, start, count in matrix.pieces or [(place.rank, 0, update.numel())]
            if rank == place.rank
        ]
        return Orthogonalization(made, place, 5, together)(mine)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("all_gather_into_tensor", "all_to_all_single"):
            patch.setattr(comm, name, getattr(meeting, name))
        found = on_threads(world, work)
    if where is None:
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
        return [part.view(shape) for part, shape in zip(found[0], shapes, strict=True)]
    heads = [iter(parts) for parts in found]
    return [
        torch.cat([next(heads[rank]) for rank, _, _ in matrix.pieces]).view(shape)
        for matrix, shape in zip(made, shapes, strict=True)
    ]


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(SIZES, min_size=1, max_size=6),
    stage=st.integers(0, 3),
    world=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_no_bit_depends_on_where_the_matrices_lie(
    shapes: list[tuple[int, int]], stage: int, world: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    updates = [torch.randn(shape, generator=generator) for shape in shapes]
    got = orthogonalized([update.clone() for update in updates], stage, world)
    for update, found in zip(updates, got, strict=True):
        [wanted] = Orthogonalization([Matrix(*update.shape)], ALONE, 5)([update.reshape(-1)])
        assert torch.equal(found, wanted.view(update.shape))


@settings(deadline=None, max_examples=40)
@given(
    shapes=st.lists(SIZES, min_size=1, max_size=6),
    twice=st.booleans(),
    stage=st.integers(0, 3),
    world=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_on_a_gpu_matrices_of_a_shape_are_taken_together(
    shapes: list[tuple[int, int]], twice: bool, stage: int, world: int, seed: int
) -> None:
    """Each as it comes out alone, in bf16; every one in a group, and no group larger than the largest."""
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes * (2 if twice else 1)
    groups = alike([Matrix(*shape) for shape in shapes])
    assert sorted(number for group in groups for number in group) == list(range(len(shapes)))
    for group in groups:
        assert len({shapes[number] for number in group}) == 1
        assert len(group) * prod(shapes[group[0]]) <= max(prod(shape) for shape in shapes)
    updates = [torch.randn(shape, generator=generator) for shape in shapes]
    got = orthogonalized([update.clone() for update in updates], stage, world, together=True)
    for update, found in zip(updates, got, strict=True):
        alone = Orthogonalization([Matrix(*update.shape)], ALONE, 5, together=True)
        [wanted] = alone([update.reshape(-1)])
        torch.testing.assert_close(found, wanted.view(update.shape), rtol=0.02, atol=0.02)


@given(
    sizes=st.lists(st.integers(0, 50), min_size=1, max_size=12),
    stage=st.integers(1, 3),
    world=st.integers(1, 7),
)
def test_every_element_is_with_one_rank(sizes: list[int], stage: int, world: int) -> None:
    partition = max(1, -(-sum(sizes) // world))
    found = pieces({str(n): size for n, size in enumerate(sizes)}, stage, world, partition)
    assert found is not None
    held = [0] * world
    for number, size in enumerate(sizes):
        parts = found[str(number)]
        elements = [start + i for _, start, count in parts for i in range(count)]
        assert elements == list(range(size))
        assert [rank for rank, _, _ in parts] == sorted({rank for rank, _, _ in parts})
        for rank, _, count in parts:
            assert count > 0 and 0 <= rank < world
            held[rank] += count
    assert stage == 3 or max(held) <= partition


@given(shapes=st.lists(SIZES, max_size=20), stage=st.integers(0, 3), world=st.integers(1, 5))
def test_the_work_is_shared(shapes: list[tuple[int, int]], stage: int, world: int) -> None:
    """No rank has more than its share and one matrix."""
    sizes = {str(n): rows * columns for n, (rows, columns) in enumerate(shapes)}
    where = pieces(sizes, stage, world, max(1, -(-sum(sizes.values()) // world)))
    made = [Matrix(*s, () if where is None else where[str(n)]) for n, s in enumerate(shapes)]
    costs, loads = [flops(*shape, 5) for shape in shapes], [0] * world
    for owner, cost in zip(owners(made, world), costs, strict=True):
        loads[owner] += cost
    assert max(loads) <= sum(costs) / world + max(costs, default=0)


class Empties(TorchDispatchMode):
    """Counts what torch.empty gives; kernels' own scratch is not in it."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.empty.memory_format:
            self.bytes += result.nbytes
        return result


@pytest.mark.parametrize("together", [False, True])
def test_the_room_is_what_it_allocates(together: bool) -> None:
    """On one rank, where nothing is received or joined; all of it at once."""
    made = [Matrix(*shape) for shape in [(64, 96), (32, 48), (32, 48), (96, 64), (16, 16), (32, 48)]]
    work = Orthogonalization(made, ALONE, 5, together)
    updates = [torch.randn(matrix.numel) for matrix in made]
    with Empties() as empties:
        work(updates)
    room = work.room
    assert empties.bytes == 4 * (room.flat + room.received + room.joined + room.largest + room.squares)


# --- the optimizer ----------------------------------------------------------------------------------------


class Net(nn.Module):
    edges = ("head",)

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.tall = nn.Linear(24, 8), nn.Linear(8, 24, bias=False)
        self.conv = nn.Conv2d(3, 6, 3)
        self.embedding, self.norm = nn.Embedding(5, 4), nn.LayerNorm(8)
        self.head = nn.Sequential(nn.Linear(8, 3))


def bound(net: nn.Module) -> Muon:
    """As under ZeRO-0 on one rank."""
    named = dict(net.named_parameters())
    rates = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8}
    muon = Muon(named.values(), ns_steps=5, **rates)
    places = [Place(name, 0, p.numel(), i, 0) for i, (name, p) in enumerate(named.items())]
    muon.bind(units(list(named.values()), places, matrices(net), None, ALONE, muon.ns_steps))
    return muon


def give_gradients(net: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_hidden_layers_are_matrices_and_nothing_else_is() -> None:
    assert matrices(Net()) == {"wide.weight": (8, 24), "tall.weight": (24, 8), "conv.weight": (6, 27)}
    shared = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    shared[1].weight = shared[0].weight
    assert list(matrices(shared)) == ["0.weight"]


def test_it_is_torchs_muon_and_torchs_adamw() -> None:
    """torch's orthogonalizes in bf16, whose eight digits are the tolerance; a convolution is one more
    matrix."""
    torch.manual_seed(0)
    net = Net()
    theirs = {name: p.detach().clone() for name, p in net.named_parameters()}
    start = {name: p.clone() for name, p in theirs.items()}
    shapes = matrices(net)
    for name, (rows, columns) in shapes.items():
        theirs[name] = theirs[name].view(rows, columns)
    muon = torch.optim.Muon(
        [theirs[name] for name in shapes],
        lr=0.02,
        weight_decay=0.1,
        momentum=0.95,
        adjust_lr_fn="match_rms_adamw",
    )
    adamw = torch.optim.AdamW(
        [p for name, p in theirs.items() if name not in shapes], lr=0.02, weight_decay=0.1
    )
    ours = bound(net)
    for step in range(5):
        give_gradients(net, step)
        for name, p in net.named_parameters():
            assert p.grad is not None
            theirs[name].grad = p.grad.clone().view(theirs[name].shape)
        for optimizer in (ours, muon, adamw):
            optimizer.step()
    for name, p in net.named_parameters():
        way = (theirs[name].view(p.shape) - start[name]).norm()
        apart = float((p.detach() - theirs[name].view(p.shape)).norm() / way)
        assert apart <= (0.03 if name in shapes else 1e-6), name


def test_steps_may_be_left_out() -> None:
    """On the host, or where only the device knows, by a 1: nothing changes, whatever the gradients are."""
    torch.manual_seed(0)
    net = Net()
    muon = bound(net)
    give_gradients(net, 0)
    muon.step()

    def everything() -> list[Tensor]:
        states = [t for state in muon.state.values() for t in state.values()]
        return [t.detach().clone() for t in [*net.parameters(), *states]]

    before = everything()
    for leave in ("overflow", "found_inf", "on the device"):
        give_gradients(net, 1)
        for p in net.parameters():
            assert p.grad is not None
            p.grad.view(-1)[0] = float("nan")
        if leave == "overflow":
            muon.overflow = True
            muon.step()
            muon.overflow = False
        elif leave == "found_inf":
            muon.found_inf = torch.tensor(1.0)
            muon.step()
            muon.found_inf = None
        else:
            muon.take(torch.tensor(1.0))
        assert all(torch.equal(a, b) for a, b in zip(everything(), before, strict=True)), leave
    # And a 0 there is a step like any other.
    other = Net()
    other.load_state_dict(net.state_dict())
    apart = bound(other)
    apart.make_states(1)
    for kind, parts in muon.moments().items():
        for to, of in zip(apart.moments()[kind], parts, strict=True):
            if isinstance(of, Packed) and isinstance(to, Packed):
                to.flat.copy_(of.flat)
    for one in (net, other):
        give_gradients(one, 2)
    muon.take(torch.tensor(0.0))
    apart.step()
    for a, b in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)
