"""Activation checkpointing: a block's activations are dropped after its forward and made again in backward.

``full`` keeps a block's inputs alone and runs the whole block again (Chen et al. 2016), about a third more
work. ``selective`` also keeps the outputs of convolutions, matrix products and attention: nearly all of the
work, and of the bytes the part that is not cheap. Norms, activations and copies, whose saved tensors are the
rest, are run again. Numbers do not change: the same kernels see the same inputs.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

aten = torch.ops.aten

# bmm is not here: without a fused kernel it makes attention's [L, L] weights, the last thing to keep.
KEPT = [
    aten.convolution.default,
    aten.mm.default,
    aten.addmm.default,
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
]


def checkpoint_blocks(network: nn.Module, mode: str, *, hooked: bool = False) -> None:
    """Checkpoint every block of ``network`` (``network.blocks`` says which classes are blocks), in place.

    ``mode``: none, selective or full. Parameter names stay. ``hooked``: the modules have hooks that gather
    and free parameters around forward and backward, as ZeRO-3's do.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False}
    options["preserve_rng_state"] = False  # no block draws random numbers
    if mode == "selective":
        # ZeRO-3's own linear layer adds the bias in place to what mm returns: kept, it would get it twice.
        kept = [operation for operation in KEPT if not (hooked and operation is aten.mm.default)]
        options["context_fn"] = functools.partial(create_selective_checkpoint_contexts, kept)
    blocks = cast(tuple[type[nn.Module], ...], network.blocks)
    for block in _outermost(network, blocks):
        forward = functools.partial(_again_first, block.forward) if hooked else block.forward
        block.forward = functools.partial(checkpoint, forward, **options)


class _AgainFirst(torch.autograd.Function):
    """The identity, whose backward asks for a saved tensor: that makes the block's forward run again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        assert ctx.saved_tensors
        return gradient


def _again_first(forward: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
    """``forward``, with the second forward whole and over before the block's backward begins.

    Else it would run inside the backward of the block's last module and free the parameters that ZeRO-3 has
    just gathered for it; and it would be cut off where nothing more is needed, past the hooks that free.
    """
    apply: Callable[[Tensor], Tensor] = _AgainFirst.apply
    return tree_map(lambda x: apply(x) if isinstance(x, Tensor) else x, forward(*inputs, **named))


def _outermost(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> Iterator[nn.Module]:
    for child in module.children():
        if isinstance(child, kinds):
            yield child
        else:
            yield from _outermost(child, kinds)
