"""ZeRO-0: gradients are averaged over the ranks while backward still computes the others.

DeepSpeed 0.19.8 averages after backward, in one flat copy of all gradients, and copies them back. Here a
bucket is reduced as soon as its gradients are there, as torch's DistributedDataParallel does it (Li et al.
2020, arXiv 2006.15704, section 3.2.3); the flat copy of a bucket takes the place of its gradients. Not DDP
itself: that regroups its buckets after the first step of a process, and where three ranks or more sum by
position a resumed run would differ in the last bits from one that was not interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from diffcore.config.buckets import divided


class Overlap:
    """Averages the gradients of ``parameters`` over ``world`` ranks, in buckets of ``capacity`` elements.

    The ranks have the same parameters in the same order, and reduce the same buckets in the same order. Sums
    first and divides then, as DeepSpeed does.
    """

    def __init__(self, parameters: Sequence[Tensor], capacity: int, world: int) -> None:
        self._world = world
        # Backward ends with the first parameters.
        backwards = [p for p in reversed(parameters) if p.requires_grad and p.numel()]
        parts = divided([p.numel() for p in backwards], capacity)
        self._buckets = [[backwards[i] for i in part] for part in parts]
        self._missing: list[int] = []
        self._flying: list[tuple[Any, Tensor]] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(partial(self._ready, number))
            for number, bucket in enumerate(self._buckets)
            for parameter in bucket
        ]

    def begin(self) -> None:
        """The backward that follows is the last one before a step."""
        self._missing = [len(bucket) for bucket in self._buckets]

    def finish(self) -> None:
        """After that backward: gradients that nothing reached are 0, and all are averaged."""
        for bucket in self._buckets[len(self._flying) :]:
            self._reduce(bucket)
        self._missing = []
        for work, flat in self._flying:
            work.wait()
            flat.mul_(1.0 / self._world)
        self._flying = []

    def _ready(self, number: int, parameter: Tensor) -> None:
        """A gradient is there, to which nothing will be added."""
        if not self._missing:
            return
        self._missing[number] -= 1
        # In their order: a collective that one rank begins earlier than another meets the wrong one there.
        while (at := len(self._flying)) < len(self._buckets) and not self._missing[at]:
            self._reduce(self._buckets[at])

    def _reduce(self, bucket: Sequence[Tensor]) -> None:
        """Put the bucket's gradients into one flat tensor, which they become views of, and sum it."""
        from deepspeed import comm

        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = _flat(bucket)
        self._flying.append((comm.all_reduce(flat, async_op=True), flat))


@torch.no_grad()
def _flat(bucket: Sequence[Tensor]) -> Tensor:
    """One tensor of the gradients of ``bucket``; theirs from now on. Each keeps its strides."""
    gradients = [parameter.grad for parameter in bucket if parameter.grad is not None]
    if len(gradients) == 1 and gradients[0].is_contiguous():
        return gradients[0].view(-1)
    flat = gradients[0].new_empty(sum(gradient.numel() for gradient in gradients))
    parts = flat.split([gradient.numel() for gradient in gradients])
    views = [
        part.as_strided(gradient.size(), gradient.stride(), part.storage_offset())
        if gradient.is_contiguous(memory_format=torch.channels_last)
        else part.view_as(gradient)
        for part, gradient in zip(parts, gradients, strict=True)
    ]
    torch._foreach_copy_(views, gradients)
    for parameter, view in zip(bucket, views, strict=True):
        parameter.grad = view
    return flat
