"""The ranks of a run: this process's place among them, and what they exchange. Knows torch alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from diffbase import malloc
from diffcore.config.precision import DTYPES, Precision


@dataclass(frozen=True)
class World:
    """This process's place among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0


def torch_dtype(precision: Precision) -> torch.dtype:
    """torch's type of a precision's numbers."""
    return cast(torch.dtype, getattr(torch, DTYPES[precision]))


def one_device() -> torch.device:
    """The GPU of a process that is alone, or the CPU with malloc set up to keep what steps free."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    malloc.keep_freed()
    return torch.device("cpu")


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone (gloo raises a bare RuntimeError)."""
    return isinstance(error, torch.distributed.DistError) or "onnection" in str(error)


def side_group() -> torch.distributed.ProcessGroup:
    """All ranks once more, over the CPU: for what goes on beside the training. A collective."""
    group: torch.distributed.ProcessGroup = torch.distributed.new_group(backend="gloo")
    return group


def gather_objects(
    value: Any, world: World, group: torch.distributed.ProcessGroup | None = None
) -> list[Any]:
    """``value`` of every rank, in rank order, on every rank. A collective."""
    gathered: list[Any] = [None] * world.size
    torch.distributed.all_gather_object(gathered, value, group=group)
    return gathered


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a small tensor over the ranks. A collective."""
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value


def barrier() -> None:
    """Wait until every rank is here."""
    torch.distributed.barrier()
