"""The ranks of a run: this process's place among them, and what they exchange. Knows torch alone."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffbase.cli import InputError
from diffbase.machine import malloc
from diffcore.config.precision import DTYPES, Precision

S = TypeVar("S", bound=np.generic)


@dataclass(frozen=True)
class World:
    """This process's place among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device
    store: torch.distributed.Store | None = None
    """Where the ranks met, for words beside the training (``exchange``); of one rank None."""

    @property
    def main(self) -> bool:
        """Whether this is rank 0, which writes and prints."""
        return self.rank == 0


def torch_dtype(precision: Precision) -> torch.dtype:
    """torch's type of a precision's numbers."""
    return cast(torch.dtype, getattr(torch, DTYPES[precision]))


def one_device(wanted: str | torch.device | None = None) -> torch.device:
    """The device of a process that is alone: the ``wanted`` one, else the GPU, else the CPU.

    For the CPU malloc is set up to keep what steps free. InputError for a device that is not there.
    """
    default = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(default if wanted is None else wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        reason = str(error).splitlines()[0]
        raise InputError(f"device {wanted}: cannot be used here ({reason})") from error
    if device.type == "cpu":
        malloc.keep_freed()
    return device


class StrangerError(RuntimeError):
    """A process that is not one of the run's stands among the ranks, or one of them cannot prove itself."""


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether a collective failed because another rank is gone (gloo raises a bare RuntimeError)."""
    return isinstance(error, torch.distributed.DistError) or "onnection" in str(error)


def side_group(ranks: Sequence[int]) -> torch.distributed.ProcessGroup:
    """Some ranks once more, over the CPU: for what goes on beside the training. A collective of those.

    Connections are made between those that send to each other, where this torch can (of 2.7 and later).
    """
    lazily, before = "TORCH_GLOO_LAZY_INIT", os.environ.get("TORCH_GLOO_LAZY_INIT")
    os.environ[lazily] = "1"
    try:
        group: torch.distributed.ProcessGroup = torch.distributed.new_group(
            list(ranks), backend="gloo", use_local_synchronization=True
        )
    finally:
        if before is None:
            del os.environ[lazily]
        else:
            os.environ[lazily] = before
    return group


def gather(value: Any, world: World) -> list[Any]:
    """``value``, which JSON can hold, of every rank, in rank order, on every rank. A collective."""
    return [json.loads(data) for data in _gather_bytes(json.dumps(value).encode(), world)]


def gather_to_main(value: Any, world: World) -> list[Any] | None:
    """``gather``, to rank 0 alone: None on every other, which holds nothing of theirs. A collective."""
    if world.size == 1:
        return [value]
    data = json.dumps(value).encode()
    longest = torch.tensor([len(data)], device=world.device)
    torch.distributed.all_reduce(longest, torch.distributed.ReduceOp.MAX)
    padded = torch.frombuffer(bytearray(data.ljust(int(longest))), dtype=torch.uint8).to(world.device)
    parts = [torch.empty_like(padded) for _ in range(world.size)] if world.main else None
    torch.distributed.gather(padded, parts, dst=0)
    return None if parts is None else [json.loads(part.cpu().numpy().tobytes()) for part in parts]


def from_rank(value: Any, world: World, source: int = 0) -> Any:
    """Rank ``source``'s ``value``, which JSON can hold, on every rank. A collective."""
    if world.size == 1:
        return value
    mine = world.rank == source
    data = json.dumps(value).encode() if mine else b""
    size = torch.tensor([len(data)], device=world.device)
    torch.distributed.broadcast(size, source)
    said = (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if mine
        else torch.empty(int(size), dtype=torch.uint8)
    )
    torch.distributed.broadcast(said := said.to(world.device), source)
    return value if mine else json.loads(said.cpu().numpy().tobytes())


def first_problem(problem: str | None, world: World) -> str | None:
    """What is wrong on the first rank where something is; None where nothing is on any. A collective."""
    if world.size == 1:
        return problem
    first = torch.tensor([world.size if problem is None else world.rank], device=world.device)
    torch.distributed.all_reduce(first, torch.distributed.ReduceOp.MIN)
    found: str | None = from_rank(problem, world, int(first)) if int(first) < world.size else None
    return found


def gather_arrays(array: NDArray[S], world: World) -> list[NDArray[S]]:
    """An array of every rank, in rank order, on every rank; shapes may differ. A collective."""
    np.save(stream := io.BytesIO(), array, allow_pickle=False)
    return [np.load(io.BytesIO(data), allow_pickle=False) for data in _gather_bytes(stream.getvalue(), world)]


def _gather_bytes(data: bytes, world: World) -> list[bytes]:
    """Not torch's all_gather_object: that unpickles what came over the network, which can run code."""
    if world.size == 1:
        return [data]

    def everyone(tensor: Tensor) -> list[Tensor]:
        parts = [torch.empty_like(tensor) for _ in range(world.size)]
        torch.distributed.all_gather(parts, tensor)
        return parts

    sizes = [int(size) for size in everyone(torch.tensor([len(data)], device=world.device))]
    padded = torch.frombuffer(bytearray(data.ljust(max(sizes))), dtype=torch.uint8).to(world.device)
    return [part[:size].cpu().numpy().tobytes() for part, size in zip(everyone(padded), sizes, strict=True)]


def send_bytes(data: bytes | memoryview, to: int, group: torch.distributed.ProcessGroup | None) -> None:
    """Give ``data`` to rank ``to``, which calls ``receive_bytes``; ``group`` as of ``side_group``."""
    torch.distributed.send(torch.tensor([len(data)]), to, group=group)
    if len(data):
        torch.distributed.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), to, group=group)


def receive_bytes(source: int, group: torch.distributed.ProcessGroup | None) -> bytearray:
    """What rank ``source`` gives by ``send_bytes``."""
    size = torch.zeros(1, dtype=torch.int64)
    torch.distributed.recv(size, source, group=group)
    data = bytearray(int(size))
    if data:
        torch.distributed.recv(torch.frombuffer(data, dtype=torch.uint8), source, group=group)
    return data


def sum_over_ranks(value: Tensor) -> Tensor:
    """Sum of a small tensor over the ranks. A collective."""
    value = value.detach().clone()
    torch.distributed.all_reduce(value)
    return value


def barrier() -> None:
    """Wait until every rank is here."""
    # NCCL would guess the device from the rank, which is another where a task is shown one GPU only.
    on_gpu = torch.distributed.get_backend() == "nccl"
    torch.distributed.barrier(device_ids=[torch.cuda.current_device()] if on_gpu else None)
