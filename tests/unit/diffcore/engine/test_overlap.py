"""Gradients of ZeRO-0 are averaged bucket by bucket, all of them, in one order, while backward goes on."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from deepspeed import comm
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffcore.config.buckets import divided
from diffcore.engine.gradients.overlap import Overlap


class Others:
    """In the place of an all-reduce over ``world`` ranks that all have this one's gradients."""

    def __init__(self, world: int) -> None:
        self.world, self.sums, self.done = world, list[Tensor](), 0

    def all_reduce(self, flat: Tensor, async_op: bool) -> Any:
        assert async_op
        self.sums.append(flat)
        return self

    def wait(self) -> None:
        self.sums[self.done].mul_(self.world)
        self.done += 1


def network(widths: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(a, b, 1) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*layers)


@settings(deadline=None, max_examples=40)
@given(
    widths=st.lists(st.integers(1, 5), min_size=2, max_size=6),
    capacity=st.integers(1, 60),
    batches=st.integers(1, 3),
    world=st.sampled_from([2, 4]),
    channels_last=st.booleans(),
    unused=st.booleans(),
)
def test_every_gradient_is_the_mean_over_the_ranks(
    widths: list[int], capacity: int, batches: int, world: int, channels_last: bool, unused: bool
) -> None:
    """The mean of equal gradients is the gradient, to the last bit: worlds are powers of two."""
    torch.manual_seed(0)
    net = network(widths)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    parameters = list(net.parameters())
    if unused:
        parameters.insert(1, nn.Parameter(torch.ones(3, 2)))
    inputs = [torch.randn(2, widths[0], 3, 3) for _ in range(batches)]
    for x in inputs:
        net(x).square().sum().backward()
    expected = [torch.zeros(3, 2) if p.grad is None else p.grad.clone() for p in parameters]
    for p in parameters:
        p.grad = None

    others = Others(world)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "all_reduce", others.all_reduce)
        overlap = Overlap(parameters, capacity, world)
        for number, x in enumerate(inputs):
            if last := number == len(inputs) - 1:
                overlap.begin()
            net(x).square().sum().backward()
            if last:
                overlap.finish()
            else:
                assert not others.sums  # only what is stepped on is reduced
    for parameter, gradient in zip(parameters, expected, strict=True):
        assert parameter.grad is not None and parameter.grad.stride() == gradient.stride()
        assert torch.equal(parameter.grad, gradient)
    assert sum(flat.numel() for flat in others.sums) == sum(p.numel() for p in parameters)


def test_buckets_are_reduced_before_backward_has_ended() -> None:
    net, events = network([2, 3, 4, 5]), list[str]()
    net[0].weight.register_post_accumulate_grad_hook(lambda _: events.append("first layer"))
    others = Others(2)
    reduce = others.all_reduce

    def noted(flat: Tensor, async_op: bool) -> Any:
        events.append("reduce")
        return reduce(flat, async_op)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comm, "all_reduce", noted)
        overlap = Overlap(list(net.parameters()), 25, 2)
        overlap.begin()
        net(torch.ones(1, 2, 1, 1)).sum().backward()
        before = list(events)
        overlap.finish()
    assert before.index("reduce") < before.index("first layer")
    assert events.count("reduce") == len(divided([5, 20, 4, 12, 3, 6], 25)) == 2


@given(numels=st.lists(st.integers(1, 100), max_size=30), capacity=st.integers(1, 200))
def test_buckets_hold_neighbours_up_to_their_capacity(numels: list[int], capacity: int) -> None:
    parts = divided(numels, capacity)
    assert [number for part in parts for number in part] == list(range(len(numels)))
    sizes = [sum(numels[number] for number in part) for part in parts]
    assert all(size <= capacity or len(part) == 1 for size, part in zip(sizes, parts, strict=True))
    # As few as can be without a change of order: no bucket had room for the next one's first.
    assert all(a + numels[part[0]] > capacity for a, part in zip(sizes, parts[1:], strict=False))
