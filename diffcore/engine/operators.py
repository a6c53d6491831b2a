"""Which operators work on this machine, asked without compiling any."""

from __future__ import annotations

import os

import torch

from diffbase.machine import compile_cache
from diffcore.engine.optimizers import PARTITIONED


def compatible() -> dict[str, bool]:
    """DeepSpeed's operators by name: whether they could be compiled here. ImportError where it is broken."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    compile_cache.choose()
    import deepspeed

    found = dict(deepspeed.ops.__compatible_ops__)
    found.pop("deepspeed_not_implemented", None)  # a stand-in, no operator
    return dict(sorted(found.items()))


def offloaded_step() -> None:
    """One step on the CPU as ``engine.offload`` takes it; RuntimeError where torch cannot."""
    weight = torch.nn.Parameter(torch.ones(8))
    weight.grad = torch.ones(8)
    PARTITIONED["adamw"]([weight], lr=0.1, fused=True).step()
