"""Functions of torch as a GPU runs them, on fake tensors of a CPU: autocast's fp32 list, dropout, attention.

The lists are those of aten/src/ATen/autocast_mode.h. A function that autocast gives fp32 copies of its
arguments keeps them for backward; on the CPU many of them run in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only

IN_FP32 = frozenset({
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt",
    "sinh", "tan", "pow", "__pow__", "__rpow__", "softplus", "layer_norm", "native_layer_norm", "group_norm",
    "cosine_similarity", "poisson_nll_loss", "cosine_embedding_loss", "nll_loss", "hinge_embedding_loss",
    "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss", "margin_ranking_loss",
    "multilabel_margin_loss", "soft_margin_loss", "triplet_margin_loss", "multi_margin_loss",
    "binary_cross_entropy_with_logits", "cross_entropy", "dist", "cdist", "renorm", "logsumexp",
    "softmax", "log_softmax", "softmin", "cumsum", "cumprod", "prod",
})  # fmt: skip
"""Names that autocast runs in fp32 on CUDA (``cross_entropy`` by the ``log_softmax`` in it)."""
LOW = (torch.bfloat16, torch.float16)
HEAD = 256
"""Widest head of the fused attention kernels of a GPU."""


class OnCuda(TorchFunctionMode):
    """Calls of torch's functions as on a GPU, under autocast or not."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if func is F.dropout or func is torch.dropout:
            return _dropout(*args, **kwargs)
        if func is F.scaled_dot_product_attention:
            return _attention(func, args, kwargs)
        if name in IN_FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _full, (args, kwargs))
        return func(*args, **kwargs)


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in LOW else tensor


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **other: Any) -> Tensor:
    """A fused kernel that keeps a mask of bytes; a CPU's keeps one of x's dtype."""
    train = other.get("train", training)
    if not train or not p:
        return x
    result: Tensor = torch.native_dropout(x, p, True)[0]
    return result


def _attention(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    """The fused kernels of a GPU drop out inside; what they cannot do runs step by step."""
    named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
    named |= kwargs
    query, key = named["query"], named["key"]
    full = query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    grouped = named.get("enable_gqa", False) and query.shape[-3] != key.shape[-3]
    steps = (full and grouped) or max(query.shape[-1], named["value"].shape[-1]) > HEAD
    if steps:
        with sdpa_kernel(SDPBackend.MATH):
            return func(**named)
    return func(**(named | {"dropout_p": 0.0}))
