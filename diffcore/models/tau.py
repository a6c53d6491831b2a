"""Tau: from labels to the keys and values of the UNet's cross-attention.

``Tau`` mixes all attributes in every token, ``AttributeTau`` gives each attribute tokens of its own. Both are
smaller by their ``gain`` than what they stand for: an optimizer whose steps know no scale (Adam) lets them
learn that many times as fast (as in Karras et al. 2018, section 4.1). A label that one image in a hundred has
needs it, since its row learns from no other.

Shapes: B batch, A attributes, V width of the encoded labels (217 for one-hot Cartoon Set), H heads,
N tokens, D channels per head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shards.schema import UNKNOWN, Attribute, one_hot_offsets, one_hot_width

Encoded = Tensor | tuple[Tensor, Tensor]
"""Encoded labels: the vector [B, V] of ``LabelEncoder.forward``, or what ``LabelEncoder.rows`` returns."""


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

    def rows(self, labels_BA: Tensor, keep_B: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The same vector, sparse: per attribute the place of its one entry that may be non-zero (int64
        [B, A], below V) and the entry [B, A]."""
        rows_BA = self.encoding.places(self, labels_BA)
        return rows_BA, self(labels_BA, keep_B, dtype).gather(1, rows_BA)


def _one_hot(encoder: LabelEncoder, labels_BA: Tensor, dtype: torch.dtype) -> Tensor:
    encoded_BV = torch.zeros(len(labels_BA), encoder.width, dtype=dtype, device=labels_BA.device)
    known_BA = (labels_BA != UNKNOWN).to(dtype)
    return encoded_BV.scatter_(1, _one_hot_places(encoder, labels_BA), known_BA)


def _integer(encoder: LabelEncoder, labels_BA: Tensor, dtype: torch.dtype) -> Tensor:
    assert UNKNOWN == -1  # so that it becomes 0
    return ((labels_BA + 1) / encoder.variants_A).to(dtype)


@dataclass(frozen=True)
class Encoding:
    """One way to write labels as a vector."""

    width: Callable[[Sequence[Attribute]], int]
    encode: Callable[[LabelEncoder, Tensor, torch.dtype], Tensor]
    """Labels [B, A] -> [B, width]: 0 for an unknown label, and for no other, as in a dropped condition."""
    places: Callable[[LabelEncoder, Tensor], Tensor]
    """Labels [B, A] -> int64 [B, A]: where in the vector each attribute's entry is."""


def _one_hot_places(encoder: LabelEncoder, labels_BA: Tensor) -> Tensor:
    return labels_BA.clamp(min=0) + encoder.offsets_A


def _integer_places(encoder: LabelEncoder, labels_BA: Tensor) -> Tensor:
    return torch.arange(encoder.width, device=labels_BA.device).expand(len(labels_BA), -1)


ENCODINGS = {
    "one_hot": Encoding(one_hot_width, _one_hot, _one_hot_places),
    "integer": Encoding(len, _integer, _integer_places),
}
"""The concatenated one-hot vectors; or each label as (value + 1) / variants."""


class Tau(nn.Module):
    """Linear projections from the encoded labels to the keys and values of one attention block.

    Each of the ``projections`` gives ``tokens`` tokens of ``channels``; their biases are all that an
    unconditional sample sees.
    """

    def __init__(
        self,
        encoder: LabelEncoder,
        channels: int,
        heads: int,
        tokens: int,
        projections: int,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.heads, self.tokens, self.gain = heads, tokens, gain
        layers = [nn.Linear(encoder.width, 2 * tokens * channels) for _ in range(projections)]
        self.projections = nn.ModuleList(layers)
        for projection in layers:
            # Keys and values of unit variance from the start: ``active`` of the inputs are non-zero.
            nn.init.normal_(projection.weight, std=encoder.active**-0.5 / gain)
            nn.init.normal_(projection.bias, std=0.02 / gain)

    def forward(self, encoded_BV: Tensor) -> tuple[Tensor, Tensor]:
        """[B, V] -> keys and values, each [B, H, N, D], N = projections x tokens."""
        split = (2, self.tokens, self.heads, -1)
        pairs_B2NHD = torch.cat([p(encoded_BV).unflatten(1, split) for p in self.projections], dim=2)
        pairs_B2NHD = _times(pairs_B2NHD, self.gain)
        keys_BNHD, values_BNHD = pairs_B2NHD.unbind(1)
        return keys_BNHD.transpose(1, 2), values_BNHD.transpose(1, 2)


class AttributeTau(nn.Module):
    """Keys and values of one attention block, ``tokens`` of each attribute: pixels can choose an attribute.

    A row of a table for each entry of the encoded labels, times the entry, and a bias for each token: a
    linear layer whose weight is zero but for each attribute's block. The biases are all that an unconditional
    sample sees.
    """

    def __init__(
        self, encoder: LabelEncoder, channels: int, heads: int, tokens: int, gain: float = 1.0
    ) -> None:
        super().__init__()
        self.heads, self.tokens, self.gain = heads, tokens, gain
        self.table = nn.Embedding(encoder.width, 2 * tokens * channels)
        self.bias = nn.Parameter(torch.empty(encoder.active, 2 * tokens * channels))
        # Keys and values of unit variance from the start.
        nn.init.normal_(self.table.weight, std=1 / gain)
        nn.init.normal_(self.bias, std=0.02 / gain)

    def forward(self, encoded: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """What ``LabelEncoder.rows`` returns -> keys and values, each [B, H, N, D], N = A x tokens."""
        rows_BA, entries_BA = encoded
        pairs_BAE = _times(self.table(rows_BA) * entries_BA[:, :, None] + self.bias, self.gain)
        pairs_BA2NHD = pairs_BAE.unflatten(2, (2, self.tokens, self.heads, -1))
        keys_BNHD, values_BNHD = pairs_BA2NHD.permute(2, 0, 1, 3, 4, 5).flatten(2, 3)
        return keys_BNHD.transpose(1, 2), values_BNHD.transpose(1, 2)


def _times(tensor: Tensor, gain: float) -> Tensor:
    return tensor if gain == 1 else tensor * gain
