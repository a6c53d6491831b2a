"""Weights in fewer bytes: bf16, or int8 with a scale for each output channel.

int8 is symmetric: of row o of a matrix, or filter o of a convolution, q = round(w / s_o) with
s_o = max |w_o| / 127, so that no weight is off by more than s_o / 2 (Krishnamoorthi 2018,
https://arxiv.org/abs/1806.08342, sections 2 and 3: per channel). Vectors, which are few (biases, norms),
stay fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from diffbase.cli import InputError

Dtype = Literal["bf16", "int8"]
SCALE = "scale/"
"""Before a parameter's name: the scales of its channels, fp32 [out]."""
TAKEN = (torch.float32, torch.bfloat16, torch.int8)


def compacted(weights: Mapping[str, Tensor], dtype: Dtype) -> dict[str, Tensor]:
    """fp32 weights by name -> what is written. InputError for weights that are not finite."""
    result: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise InputError(f"weights: {name} is not finite; nothing to export")
        assert not name.startswith(SCALE)
        if weight.dim() < 2 or not weight.numel():
            result[name] = weight.float()
        elif dtype == "bf16":
            result[name] = weight.bfloat16()
        else:
            rows = weight.float().flatten(1)
            scale = rows.abs().amax(dim=1) / 127
            # A channel of zeros has no scale of its own, and any will do.
            scale = torch.where(scale > 0, scale, torch.ones_like(scale))
            result[name] = (rows / scale[:, None]).round().clamp(-127, 127).to(torch.int8).view(weight.shape)
            result[SCALE + name] = scale
    return {name: tensor.contiguous() for name, tensor in result.items()}


def restored(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What was written -> fp32 weights by name. ValueError for what ``compacted`` does not give."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype not in TAKEN:
            raise ValueError(f"{name} is {str(tensor.dtype).removeprefix('torch.')}; known: fp32, bf16, int8")
        if name.startswith(SCALE):
            if tensors.get(name.removeprefix(SCALE), tensor).dtype != torch.int8:
                raise ValueError(f"{name} has no int8 tensor to scale")
        elif tensor.dtype == torch.int8:
            scale = tensors.get(SCALE + name)
            if scale is None or not tensor.dim() or scale.shape != tensor.shape[:1]:
                raise ValueError(f"{name} is int8 without a scale for each of its channels")
            result[name] = tensor.float() * scale.float().view(-1, *[1] * (tensor.dim() - 1))
        else:
            result[name] = tensor.float()
    return result
