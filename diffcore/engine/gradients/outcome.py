"""Whether a step changed the weights: found on the device, read by the host when that waits for nothing."""

from __future__ import annotations

import torch
from torch import Tensor


class Outcome:
    """Of one step: ``applied`` reads it.

    A tensor is on its way to the host meanwhile: who reads it after the next forward and backward are queued
    does not hold up the GPU.
    """

    def __init__(self, applied: bool | Tensor) -> None:
        """``applied``: known already, or a 0-dim bool tensor on its device."""
        self._applied, self._there = applied, None
        if torch.is_tensor(applied) and applied.device.type == "cuda":
            # Only into pinned memory is a copy queued; into other memory the host waits for it.
            self._applied = torch.empty((), dtype=applied.dtype, pin_memory=True)
            self._applied.copy_(applied, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    @property
    def known(self) -> bool:
        """Whether the host has it already."""
        return isinstance(self._applied, bool)

    def applied(self) -> bool:
        """Whether the weights may have changed: not where a gradient was not finite, on every rank alike."""
        if self._there is not None:
            self._there.synchronize()
            self._there = None
        self._applied = bool(self._applied)
        return self._applied
