"""The training loss between two log lines: its mean, and its mean by timestep quartile."""

from __future__ import annotations

import torch
from torch import Tensor

from diffcore.engine.ranks import sum_over_ranks

QUARTILES = 4


class LossMeter:
    """Sums stay on the device until they are read: adding to them does not wait for it."""

    def __init__(self, timesteps: int, device: torch.device) -> None:
        self.timesteps = timesteps
        self._sums = torch.zeros(2, QUARTILES, dtype=torch.float64, device=device)  # losses, counts

    def add(self, error_B: Tensor, t_B: Tensor) -> None:
        """Take in a micro batch: the samples' losses [B] and timesteps [B]."""
        quartile_B = t_B * QUARTILES // self.timesteps
        self._sums[0].index_add_(0, quartile_B, error_B.detach().double())
        self._sums[1].index_add_(0, quartile_B, torch.ones_like(error_B, dtype=torch.float64))

    def read(self) -> dict[str, float]:
        """``loss`` and ``loss_t1`` (least noise) to ``loss_t4`` over all ranks since the last read.

        A quartile without samples is left out. A collective.
        """
        losses, counts = sum_over_ranks(self._sums).cpu()
        self._sums.zero_()
        figures = {"loss": (losses.sum() / counts.sum()).item()}
        for i in range(QUARTILES):
            if counts[i]:
                figures[f"loss_t{i + 1}"] = (losses[i] / counts[i]).item()
        return figures
