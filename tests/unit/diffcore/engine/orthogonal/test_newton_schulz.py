"""Orthogonalization on the Gram matrix beside the iteration as it is written, in fp64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from diffcore.engine.orthogonal.newton_schulz import (
    SQUARES,
    A,
    B,
    C,
    flops,
    orthogonalize,
    orthogonalize_together,
)

SIDES = st.integers(1, 40)


def plain(x: Tensor, steps: int) -> Tensor:
    """The quintic iteration, word for word."""
    x = x / max(float(x.norm()), 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = A * x + (B * gram + C * gram @ gram) @ x
    return x


def ours(x: Tensor, steps: int, scale: float = 1.0) -> Tensor:
    squares = torch.empty(SQUARES * min(x.shape) ** 2)
    return orthogonalize(x.clone(), torch.empty_like(x), squares, steps, scale)


@settings(deadline=None, max_examples=60)
@given(
    rows=SIDES,
    columns=SIDES,
    steps=st.integers(1, 12),
    rank=st.integers(0, 40),
    decades=st.integers(0, 12),
    size=st.sampled_from([1e-5, 1.0, 1e12]),
    seed=st.integers(0, 2**31),
)
def test_it_is_the_iteration_as_it_is_written(
    rows: int, columns: int, steps: int, rank: int, decades: int, size: float, seed: int
) -> None:
    """Of matrices of any rank and condition, to what fp32 makes of the iteration itself.

    A rounding error of 2^-24 of the norm grows as a small singular value does, by A in each step, until it is
    as large as they all are.
    """
    generator = torch.Generator().manual_seed(seed)
    rank = min(rank, rows, columns)
    left = torch.randn(rows, rank, generator=generator, dtype=torch.float64)
    right = torch.randn(rank, columns, generator=generator, dtype=torch.float64)
    values = torch.logspace(0, -decades, rank, dtype=torch.float64)
    x = (size * (left * values) @ right).float()
    got, wanted = ours(x, steps).double(), plain(x.double(), steps)
    assert got.isfinite().all()
    if steps <= 5:
        control = plain(x, steps).double()
        grown = 16 * 2.0**-24 * A**steps
        assert (got - wanted).norm() <= grown * min(rows, columns) + 4 * (control - wanted).norm()
    # Never further from 0 than the iteration's fixed band, whatever noise it had to work on.
    assert torch.linalg.matrix_norm(got, 2) <= 1.3


@pytest.mark.parametrize("shape", [(64, 576), (576, 64), (128, 128), (12, 12), (32, 1), (1, 1)], ids=str)
def test_singular_values_end_within_jordans_band(shape: tuple[int, int]) -> None:
    """Those of Gaussian matrices, but for the smallest of square ones, which five steps do not lift."""
    torch.manual_seed(0)
    values = torch.linalg.svdvals(ours(torch.randn(shape), 5))
    assert values.max() < 1.25
    assert values.quantile(0.05) > 0.65


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32), st.sampled_from([1e-3, 1.0, 1e3]))
def test_a_step_is_orthogonal_along_the_gradients_own_directions(
    rows: int, columns: int, seed: int, scale: float
) -> None:
    matrix = scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    found = u.T @ ours(matrix, 5) @ v.T
    values = found.diagonal()
    assert torch.allclose(found, values.diag(), atol=2e-3)
    large = s > 0.05 * torch.linalg.matrix_norm(matrix)
    assert ((values[large] > 0.6) & (values[large] < 1.3)).all()


def test_what_is_given_may_be_nothing_and_is_scaled() -> None:
    assert torch.equal(ours(torch.zeros(4, 6), 5), torch.zeros(4, 6))
    x = torch.randn(4, 6)
    torch.testing.assert_close(ours(x, 5, 0.25), 0.25 * ours(x, 5))
    torch.testing.assert_close(ours(1e6 * x, 5), ours(x, 5))
    torch.testing.assert_close(ours(x.mT.contiguous(), 5).mT, ours(x, 5))


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 11])
def test_its_work_is_counted(steps: int) -> None:
    with FlopCounterMode(display=False) as counter:
        ours(torch.randn(7, 33), steps)
    assert counter.get_total_flops() == flops(7, 33, steps) == flops(33, 7, steps)


@settings(deadline=None, max_examples=40)
@given(
    count=st.integers(1, 4), rows=SIDES, columns=SIDES, steps=st.integers(1, 6), seed=st.integers(0, 2**31)
)
def test_several_together_are_the_iteration_in_bf16(
    count: int, rows: int, columns: int, steps: int, seed: int
) -> None:
    """As far from the exact one as the iteration written down in bf16 is."""
    x = torch.randn(count, rows, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()
    squares = torch.empty(2 * count * min(rows, columns) ** 2, dtype=torch.bfloat16)
    got = orthogonalize_together(x.clone(), torch.empty_like(x), squares, steps, 0.5)
    for one, found in zip(x, got, strict=True):
        wanted = 0.5 * plain(one.double(), steps)
        control = 0.5 * plain(one, steps).double()
        grown = 4 * 2.0**-8 * wanted.norm()
        assert (found.double() - wanted).norm() <= 3 * (control - wanted).norm() + grown
