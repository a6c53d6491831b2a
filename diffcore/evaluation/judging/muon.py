"""Muon for the judge's convolutions, on one device: the momentum of each is made orthogonal for its step.

Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/. A convolution is the matrix [out, in k k]; a
step is scaled by 0.2 sqrt(max(out, in k k)), so that its root mean square is about AdamW's (Liu et al. 2025,
arXiv:2502.16982, eq. 4). The iteration is the engine's, in fp32: products in bf16, as torch.optim.Muon has
them, are slow on most CPUs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from diffcore.engine.orthogonal.newton_schulz import SQUARES, orthogonalize

MOMENTUM = 0.95
STEPS = 5
"""Iterations of Newton and Schulz."""


class Muon:
    """Steps of weights with two or more dimensions; ``lr`` is set before each. Weight decay as AdamW's."""

    def __init__(self, weights: Iterable[nn.Parameter], weight_decay: float) -> None:
        self.weights, self.weight_decay, self.lr = list(weights), weight_decay, 0.0
        self._momentum = [torch.zeros_like(weight) for weight in self.weights]

    @torch.no_grad()
    def step(self) -> None:
        """One step along each weight's gradient, and the gradients are forgotten."""
        for weight, momentum in zip(self.weights, self._momentum, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            ahead = weight.grad.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
            squares = ahead.new_empty(SQUARES * min(ahead.shape) ** 2)
            scale = 0.2 * math.sqrt(max(ahead.shape))
            step = orthogonalize(ahead, torch.empty_like(ahead), squares, STEPS, scale)
            weight.mul_(1 - self.lr * self.weight_decay)
            weight.add_(step.view_as(weight), alpha=-self.lr)
            weight.grad = None
