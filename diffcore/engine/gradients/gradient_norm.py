"""ZeRO-1 and 2: one norm of all gradients, read once a step, in the place of DeepSpeed's three reads.

DeepSpeed 0.19.8 looks for infinities in every gradient (bf16, fp16), takes each one's norm, and reads on the
host whether any was found, and twice whether the norm is sound. A gradient that is not finite has no finite
norm, so the norm alone tells both, and all its parts come of few launches. ZeRO-3 and an offloaded optimizer
keep DeepSpeed's own way.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from torch import Tensor


def read_once(optimizer: Any) -> None:
    """Have DeepSpeed's ``optimizer`` of stage 1 or 2 read one norm a step. Its numbers are the same."""
    if optimizer.cpu_offload:
        return
    theirs = optimizer.scaled_global_norm
    found: list[Tensor] = []

    def has_overflow(self: Any, partition_gradients: bool = True) -> bool:
        found[:] = [theirs().cpu()]  # the one read
        return not bool(found[0].isfinite())

    def scaled_global_norm(self: Any, norm_type: int = 2) -> Tensor:
        # On the host from here on: DeepSpeed's two looks at it wait for nothing.
        return found.pop() if found else theirs(norm_type).cpu()

    optimizer.get_grad_norm_direct = MethodType(_norm, optimizer)
    optimizer.has_overflow = MethodType(has_overflow, optimizer)
    optimizer.scaled_global_norm = MethodType(scaled_global_norm, optimizer)


def _norm(self: Any, gradients: Iterable[Tensor], params: Iterable[Tensor], norm_type: int = 2) -> Tensor:
    """2-norm over all ranks [], -1 where it is not finite, as DeepSpeed's get_grad_norm_direct has it."""
    from deepspeed import comm
    from deepspeed.runtime.zero.utils import get_norm_dtype

    own = [g for g in gradients if not getattr(g, "_zero_padding", False)]
    if own:
        parts = torch._foreach_norm(own, 2.0, dtype=get_norm_dtype())
        total = torch.stack(parts).pow(2.0).sum().float()
    else:
        total = torch.zeros((), device=self.device)
    comm.all_reduce(total, op=comm.ReduceOp.SUM, group=self.dp_process_group)
    norm = total.pow(0.5)
    return norm.masked_fill_(~norm.isfinite(), -1.0)
