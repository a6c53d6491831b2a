"""What every network takes and gives, so that training, sampling and memory plans treat all alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from shards.schema import Attribute


class Network(Protocol):
    """A denoising network: an ``nn.Module`` built from (its section of the config, the label schema).

    H and W are multiples of its section's ``divisor``, others from call to call (``train.stages``). It has no
    dropout and draws no random numbers, and computes in the dtype of ``x_BCHW``; its output has that dtype or
    fp32.
    """

    blocks: ClassVar[tuple[type[nn.Module], ...]]
    """Classes whose outermost modules are the blocks of activation checkpointing."""
    edges: ClassVar[tuple[str, ...]]
    """Names of submodules that meet images or labels: Muon leaves their weights to AdamW. A network without
    them has none."""

    def __call__(self, x_BCHW: Tensor, t_B: Tensor, labels_BA: Tensor, keep_B: Tensor) -> Tensor:
        """What ``diffusion.target`` says, [B, 3, H, W].

        ``x_BCHW``: a noisy image, of unit scale. ``t_B``: timesteps, int64. ``labels_BA``: one label per
        attribute in the schema's order, int64; -1 is unknown, and to its attribute what dropping is to all.
        ``keep_B``: False where the condition is dropped.
        """


class Inputs(NamedTuple):
    """The arguments of a network, in order."""

    x_BCHW: Tensor
    t_B: Tensor
    labels_BA: Tensor
    keep_B: Tensor


def example_batch(
    count: int, schema: Sequence[Attribute], size: int, device: torch.device | str = "cpu"
) -> Inputs:
    """Inputs for ``count`` images of ``size`` pixels, of the right shapes and types: zeros."""
    return Inputs(
        torch.zeros(count, 3, size, size, device=device),
        torch.zeros(count, dtype=torch.int64, device=device),
        torch.zeros(count, len(schema), dtype=torch.int64, device=device),
        torch.ones(count, dtype=torch.bool, device=device),
    )
