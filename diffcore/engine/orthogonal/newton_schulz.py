"""Orthogonalization of one matrix by the Newton-Schulz iteration (Jordan et al. 2024).

Each of the iterations X <- a X + b (X X^T) X + c (X X^T)^2 X maps every singular value s of X to
a s + b s^3 + c s^5, and they end near 1 (https://kellerjordan.github.io/posts/muon/). Here they are made on
R = X X^T, which is small where X is wide: with P = a + b R + c R^2 the next X is P X and the next R is P R P,
so that after n of them X is Q X, Q the product of their P. Of the wide X there are two products in all, and
not two an iteration; a tall X is taken from its other side.

One matrix at a time: its bits do not depend on which others a rank has beside it. (In a batch of equal shapes
on a CPU it is not faster.) A GPU takes matrices of one shape together, and iterates on X itself in bf16, as
Jordan et al. do: on its matrix units that costs less than launching fewer, exact products.
"""

from __future__ import annotations

import torch
from torch import Tensor

A, B, C = 3.4445, -4.7750, 2.0315
"""Jordan et al.'s: steep at 0, so that small singular values rise fast, and not convergent near 1."""
TOGETHER = 5
"""Iterations of one R, which are a^10 = 240,000 times its rounding at most; then it is made anew of X."""
SQUARES = 4
"""Matrices of the smaller side that it works in."""
LEAST = 1e-7
"""A matrix of a smaller norm is not blown up to norm 1."""


def orthogonalize(x: Tensor, out: Tensor, squares: Tensor, steps: int, scale: float = 1.0) -> Tensor:
    """``scale`` times what ``steps`` iterations make of ``x`` [rows, columns], fp32, in ``x`` or in ``out``.

    ``x`` and ``out`` [rows, columns] are overwritten. ``squares``: [SQUARES x side x side] or more elements,
    side the smaller of rows and columns.
    """
    side, wide = min(x.shape), x.shape[0] <= x.shape[1]
    r, p, q, t = squares[: SQUARES * side**2].view(SQUARES, side, side)
    x.div_(torch.linalg.vector_norm(x).clamp_(min=LEAST))
    while True:
        count = min(steps, TOGETHER)
        steps -= count
        torch.mm(x, x.mT, out=r) if wide else torch.mm(x.mT, x, out=r)
        for number in range(count):
            factor = p if number else q
            torch.addmm(r, r, r, beta=B, alpha=C, out=factor).diagonal().add_(A)
            if number:
                torch.mm(p, q, out=t)
                q, t = t, q
            if number < count - 1:
                torch.mm(factor, r, out=t)
                torch.mm(t, factor, out=r)
        if not steps:
            q.mul_(scale)
        torch.mm(q, x, out=out) if wide else torch.mm(x, q, out=out)
        x, out = out, x
        if not steps:
            return x


def orthogonalize_together(x: Tensor, out: Tensor, squares: Tensor, steps: int, scale: float = 1.0) -> Tensor:
    """``scale`` times what ``steps`` iterations make of each matrix of ``x`` [K, rows, columns], bf16.

    ``x`` and ``out`` [K, rows, columns] are overwritten, the result is in one of them. ``squares``:
    [2 x K x side x side] or more elements of bf16, side the smaller of rows and columns.
    """
    count, side, wide = len(x), min(x.shape[1:]), x.shape[1] <= x.shape[2]
    gram, factor = squares[: 2 * count * side**2].view(2, count, side, side)
    norm_K11 = torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True, dtype=torch.float32)
    x.div_(norm_K11.clamp_(min=LEAST))
    for _ in range(steps):
        before, after = (x, out) if wide else (x.mT, out.mT)
        torch.bmm(before, before.mT, out=gram)
        torch.baddbmm(gram, gram, gram, beta=B, alpha=C, out=factor)
        torch.baddbmm(before, factor, before, beta=A, out=after)
        x, out = out, x
    return x.mul_(scale)


def flops(rows: int, columns: int, steps: int) -> int:
    """Floating-point operations of ``orthogonalize``'s products, two per multiply-add.

    Counted also where they are made otherwise: a budget in FLOPs is the same on every machine.
    """
    side, total = min(rows, columns), 0
    while steps:
        count = min(steps, TOGETHER)
        total += 2 * 2 * side * rows * columns + (4 * count - 3) * 2 * side**3
        steps -= count
    return total
