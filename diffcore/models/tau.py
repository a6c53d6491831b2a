"""Tau: from labels to the keys and values of the UNet's cross-attention.

Shapes: B batch, A attributes, V width of the encoded labels (217 for one-hot Cartoon Set), H heads,
N tokens, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards.schema import UNKNOWN, Attribute, one_hot_offsets, one_hot_width


class LabelEncoder(nn.Module):
    """Integer labels -> one vector per sample, as one of ``ENCODINGS``. No parameters.

    A dropped condition is the zero vector, and an unknown label zeros in its attribute's place.
    """

    offsets_A: Tensor
    variants_A: Tensor

    def __init__(self, schema: Sequence[Attribute], encoding: str) -> None:
        super().__init__()
        self.encoding = ENCODINGS[encoding]
        self.width = self.encoding.width(schema)
        # How many entries are non-zero: Tau scales its initial weights by it.
        self.active = len(schema)
        # Not in the checkpoint: they follow from the schema.
        self.register_buffer("offsets_A", torch.tensor(one_hot_offsets(schema)), persistent=False)
        self.register_buffer("variants_A", torch.tensor([a.variants for a in schema]), persistent=False)

    def forward(self, labels_BA: Tensor, keep_B: Tensor, dtype: torch.dtype) -> Tensor:
        """labels int64 [B, A] (-1: unknown), keep bool [B] (False: dropped) -> [B, V]."""
        return self.encoding.encode(self, labels_BA, dtype) * keep_B[:, None].to(dtype)


def _one_hot(encoder: LabelEncoder, labels_BA: Tensor, dtype: torch.dtype) -> Tensor:
    encoded_BV = torch.zeros(len(labels_BA), encoder.width, dtype=dtype, device=labels_BA.device)
    known_BA = (labels_BA != UNKNOWN).to(dtype)
    return encoded_BV.scatter_(1, labels_BA.clamp(min=0) + encoder.offsets_A, known_BA)


def _integer(encoder: LabelEncoder, labels_BA: Tensor, dtype: torch.dtype) -> Tensor:
    assert UNKNOWN == -1  # so that it becomes 0
    return ((labels_BA + 1) / encoder.variants_A).to(dtype)


@dataclass(frozen=True)
class Encoding:
    """One way to write labels as a vector."""

    width: Callable[[Sequence[Attribute]], int]
    encode: Callable[[LabelEncoder, Tensor, torch.dtype], Tensor]
    """Labels [B, A] -> [B, width]: 0 for an unknown label, and for no other, as in a dropped condition."""


ENCODINGS = {"one_hot": Encoding(one_hot_width, _one_hot), "integer": Encoding(len, _integer)}
"""The concatenated one-hot vectors; or each label as (value + 1) / variants."""


class Tau(nn.Module):
    """Linear projections from the encoded labels to the keys and values of one attention block.

    Each of the ``projections`` gives ``tokens`` tokens of ``channels``; their biases are all that an
    unconditional sample sees.
    """

    def __init__(
        self, encoder: LabelEncoder, channels: int, heads: int, tokens: int, projections: int
    ) -> None:
        super().__init__()
        self.heads, self.tokens = heads, tokens
        layers = [nn.Linear(encoder.width, 2 * tokens * channels) for _ in range(projections)]
        self.projections = nn.ModuleList(layers)
        for projection in layers:
            # Keys and values of unit variance from the start: ``active`` of the inputs are non-zero.
            nn.init.normal_(projection.weight, std=encoder.active**-0.5)
            nn.init.normal_(projection.bias, std=0.02)

    def forward(self, encoded_BV: Tensor) -> tuple[Tensor, Tensor]:
        """[B, V] -> keys and values, each [B, H, N, D], N = projections x tokens."""
        split = (2, self.tokens, self.heads, -1)
        pairs_B2NHD = torch.cat([p(encoded_BV).unflatten(1, split) for p in self.projections], dim=2)
        keys_BNHD, values_BNHD = pairs_B2NHD.unbind(1)
        return keys_BNHD.transpose(1, 2), values_BNHD.transpose(1, 2)
