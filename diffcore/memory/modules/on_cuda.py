"""Functions of torch as a GPU runs them, on fake tensors of a CPU: autocast's fp32 list, dropout, attention.

The lists are those of aten/src/ATen/autocast_mode.h. A function that autocast gives fp32 copies of its
arguments keeps them for backward; on the CPU many of them run in bf16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import _engine_run_backward
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
    "binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp",
    "softmin", "cumsum", "cumprod", "prod",
})  # fmt: skip
"""Names that autocast runs in fp32 on CUDA ."""
HALF_TO_FLOAT = frozenset({"softmax", "log_softmax"})
"""Names of kernels that read bf16 and write fp32."""
DROPOUT, SCALED, SOFTMAX = F.dropout, F.scaled_dot_product_attention, F.softmax
CROSS_ENTROPY = F.cross_entropy
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
        if func in (DROPOUT, torch.dropout):
            return _dropout(*args, **kwargs)
        if func is SCALED:
            return _attention(*args, **kwargs)
        if func is torch.rms_norm or func is F.rms_norm:
            return _rms_norm(func, *args, **kwargs)
        if name in HALF_TO_FLOAT and torch.is_autocast_enabled("cpu"):
            return _half_to_float(func, *args, **kwargs)
        if func is F.cross_entropy and torch.is_autocast_enabled("cpu"):
            return _cross_entropy(*args, **kwargs)
        if name in IN_FP32 and torch.is_autocast_enabled("cpu"):
            args, kwargs = tree_map_only(Tensor, _full, (args, kwargs))
        return func(*args, **kwargs)


def backward(loss: Tensor) -> None:
    """``loss.backward()``; that call would lift the mode off what checkpointing computes once more."""
    _engine_run_backward(
        (loss,), (torch.ones_like(loss),), False, False, (), allow_unreachable=True, accumulate_grad=True
    )


def _full(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in LOW else tensor


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, **other: Any) -> Tensor:
    """A fused kernel that keeps a mask of bytes; a CPU's keeps one of x's dtype."""
    train = other.get("train", training)
    if not train or not p:
        return x
    result: Tensor = torch.native_dropout(x, p, True)[0]
    return result


def _attention(*args: Any, **kwargs: Any) -> Any:
    """The fused kernels of a GPU drop out inside; what they cannot do runs step by step."""
    named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
    named |= kwargs
    query, key = named["query"], named["key"]
    full = query.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    grouped = named.get("enable_gqa", False) and query.shape[-3] != key.shape[-3]
    mask, dropped = named.get("attn_mask"), named.get("dropout_p", 0.0)
    wide = max(query.shape[-1], named["value"].shape[-1]) > HEAD
    learned = mask is not None and mask.requires_grad  # a bias by position, as T5's
    if not (wide or learned or (full and grouped)):
        return SCALED(**(named | {"dropout_p": 0.0}))
    if mask is not None and learned:
        return _with_bias((query, key, named["value"], mask), dropped, named.get("scale"))
    with sdpa_kernel(SDPBackend.MATH):
        return SCALED(**named)


def _with_bias(given: tuple[Tensor, Tensor, Tensor, Tensor], p: float, scale: float | None) -> Tensor:
    """Attention step by step, in fp32 (``_scaled_dot_product_attention_math``), with a GPU's dropout."""
    if torch.is_autocast_enabled("cpu"):
        given = tree_map_only(Tensor, lambda x: x.to(torch.get_autocast_dtype("cpu")), given)
    kept = given[0].dtype
    with torch.autocast("cpu", enabled=False):
        q, k, v = (x.float() for x in given[:3])
        root = (q.shape[-1] ** -0.5 if scale is None else scale) ** 0.5
        scores = (q * root) @ (k * root).transpose(-2, -1) + given[3]
        result: Tensor = (_dropout(torch._safe_softmax(scores, -1), p) @ v).to(kept)
    return result


def _rms_norm(
    func: Callable[..., Any], x: Tensor, shape: Any, weight: Tensor | None = None, eps: float | None = None
) -> Tensor:
    """One kernel, where the weight has the dtype of what it scales."""
    fused: Callable[..., Tensor] = _FusedRmsNorm.apply
    alike = weight is None or weight.dtype == x.dtype
    return fused(x, weight, len(shape)) if alike else func(x, shape, weight, eps)


class _FusedRmsNorm(torch.autograd.Function):
    """It keeps its input and an fp32 deviation of each row; a CPU's steps keep what they scale, too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, count: int) -> Tensor:
        rows = (*x.shape[: x.ndim - count], *(1,) * count)
        ctx.save_for_backward(x, weight, x.new_empty(rows, dtype=torch.float32))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight) if weight is not None else None, None


class _HalfToFloat(torch.autograd.Function):
    """A softmax that reads bf16 and writes fp32, and its gradient the other way: no copies in between."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        result = torch.empty_like(x, dtype=torch.float32)
        ctx.save_for_backward(result)
        ctx.kept = x.dtype
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (result,) = ctx.saved_tensors
        return torch.empty_like(result, dtype=ctx.kept)


def _half_to_float(func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """softmax and log_softmax under autocast."""
    fused: Callable[..., Tensor] = _HalfToFloat.apply
    chosen = kwargs.get("dtype") is not None or x.dtype not in LOW
    result: Tensor = func(x, *args, **kwargs) if chosen else fused(x)
    return result


def _cross_entropy(x: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """It asks log_softmax for its input's own dtype, which autocast leaves; the likelihood is in fp32."""
    if x.dtype not in LOW or target.is_floating_point() or kwargs.get("label_smoothing"):
        return CROSS_ENTROPY(_full(x), target, *args, **kwargs)
    weight = kwargs.get("weight", args[0] if args else None)
    ignored, reduction = kwargs.get("ignore_index", -100), kwargs.get("reduction", "mean")
    logarithms = torch._C._VariableFunctions.log_softmax(x, 1)
    return F.nll_loss(logarithms.float(), target, weight, ignore_index=ignored, reduction=reduction)


def _softmax(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return (
        _half_to_float(SOFTMAX, x, *args, **kwargs)
        if torch.is_autocast_enabled("cpu")
        else SOFTMAX(x, *args, **kwargs)
    )


INSIDE = {"dropout": _dropout, "scaled_dot_product_attention": _attention, "softmax": _softmax}
"""Of torch.nn.functional what its own functions call: a mode does not see those calls."""
