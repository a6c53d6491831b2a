"""Everything random about a sample, as a function of (seed, stream, position) alone.

A position is a sample's place in the endless training stream, or its number in a set of samples. Rank,
world size and batch size play no part, so that a run that is resumed on other machines, or an image
drawn in another batch, meets the same noise. Drawn with the counter-based Philox (Salmon et al. 2011).

What a run trains with has a version (``diffusion.draws``), which belongs to its identity:

1. by NumPy on the CPU, the same bits for every device;
2. on the device itself (philox.py): timesteps, label drops and the integers behind the noise are the same
   bits on every device, the noise the same bits on one device and within a few units in the last place on
   another.

What is drawn for validation and for samples is NumPy's in every run, as figures of older runs are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from diffcore.diffusion import philox

Levels = Callable[[Tensor, Tensor], Tensor]
"""(random words [B], positions [B]) -> timesteps [B], all int64 (timesteps.py)."""
# One number per use, so that no two share a random stream. Fixed: checkpoints and figures depend on them.
STREAMS = {"train": 1, "sample": 2, "labels": 3, "validation": 4, "offsets": 5}


def generator(seed: int, stream: str, position: int, step: int = 0) -> np.random.Generator:
    """The generator of one position of one stream; ``step`` for uses that draw anew at every step."""
    # Philox counts in 256 bits: the lowest word counts the numbers drawn, the others separate the uses.
    counter = [0, step, position, STREAMS[stream]]
    return np.random.Generator(np.random.Philox(key=[seed, 0], counter=counter))


def normal(seed: int, stream: str, positions: Iterable[int], shape: Sequence[int], step: int = 0) -> Tensor:
    """Standard normal noise, one block per position: [B, *shape], fp32, CPU."""
    blocks = [
        generator(seed, stream, int(p), step).standard_normal(tuple(shape), dtype=np.float32)
        for p in positions
    ]
    return torch.from_numpy(np.stack(blocks))


def labels(seed: int, positions: Iterable[int], variants: Sequence[int]) -> Tensor:
    """Labels drawn uniformly, one row per position: int64 [B, A]."""
    rows = [[generator(seed, "labels", int(p)).integers(0, variants)] for p in positions]
    return torch.from_numpy(np.concatenate(rows))


@dataclass(frozen=True)
class Draws:
    """What chance decides for a batch: timesteps int64 [B], noise fp32 [B, C, H, W], keep bool [B]."""

    t_B: Tensor
    eps_BCHW: Tensor
    keep_B: Tensor

    @classmethod
    def at(
        cls,
        positions: Iterable[int],
        *,
        seed: int,
        timesteps: int,
        label_dropout: float,
        shape: Sequence[int],
        stream: str = "train",
    ) -> Draws:
        """The draws, version 1, of the samples at ``positions``; t is uniform over 0 .. timesteps - 1."""
        t, keep, eps = [], [], []
        for position in positions:
            random = generator(seed, stream, int(position))
            t.append(random.integers(timesteps))
            keep.append(random.random() >= label_dropout)
            eps.append(random.standard_normal(tuple(shape), dtype=np.float32))
        return cls(torch.tensor(t), torch.from_numpy(np.stack(eps)), torch.tensor(keep))

    @classmethod
    def on_device(
        cls,
        positions_B: Tensor,
        *,
        seed: int,
        timesteps: int,
        label_dropout: float,
        shape: Sequence[int],
        stream: str = "train",
        levels: Levels | None = None,
    ) -> Draws:
        """The draws, version 2, of the samples at ``positions_B``, int64 [B], made on its device.

        ``levels`` says which t a random word stands for; without it t is uniform over 0 .. timesteps - 1.
        """
        words_B4, eps = philox.words_and_normals(seed, positions_B, STREAMS[stream], shape)
        word_B = words_B4[:, 0]
        t_B = levels(word_B, positions_B) if levels else philox.uniform(word_B, timesteps)
        return cls(t_B, eps, ~philox.happens(words_B4[:, 1], label_dropout))

    def to(self, device: torch.device) -> Draws:
        """The same draws on ``device``."""
        return Draws(*(x.to(device) for x in (self.t_B, self.eps_BCHW, self.keep_B)))
