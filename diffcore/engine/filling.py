"""Tensors of which every rank holds all, filled from files of which no two ranks read the same.

Every rank that read them whole would ask a shared disk for a checkpoint as often as there are ranks. Here a
rank reads a run of neighbouring slices, and what it read goes to the others over the network: in rounds, of
which each has one chunk of every rank, so that all read side by side and none holds more than one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from diffbase.cli import InputError
from diffcore.engine.ranks import World, first_problem

CHUNK = 4 << 20
"""Most elements that travel together: 16 MiB."""

Read = Callable[[str, str, int, int], Tensor]
"""(kind, parameter, start, count) -> fp32 [count], CPU; kind: "weights", "ema" or a moment of Adam's."""
Slice = tuple[str, str, int, int]
"""(kind, parameter, start, count)."""


def fill_together(
    held: Mapping[tuple[str, str], Tensor], slices: Sequence[Slice], read: Read, world: World, most: int
) -> None:
    """Fill flat tensors, the same on every rank, by (kind, parameter). A collective.

    ``slices``: in which parts they are read, in the order in which they lie in the files; what is not held
    is left out. ``most``: elements of a chunk. InputError, on every rank, where ``read`` gives one on any
    or the slices of any are not what is held.
    """
    wanted = [part for part in slices if part[:2] in held]
    # Of all: a rank whose disk lags may see other files, and the others would wait for it.
    if (problem := first_problem(_misfit(held, wanted), world)) is not None:
        raise InputError(problem)
    chunks = list(chunked(wanted, max(1, min(most, CHUNK))))
    each = -(-len(chunks) // world.size)
    for turn in range(each):
        mine, problem, own = world.rank * each + turn, None, None
        if mine < len(chunks):
            try:
                own = _read(chunks[mine], read)
            except InputError as error:
                problem = str(error)
        if (problem := first_problem(problem, world)) is not None:
            raise InputError(problem)
        for source in range(world.size):
            if (number := source * each + turn) < len(chunks):
                _spread(held, chunks[number], own if source == world.rank else None, source, world)


def chunked(slices: Sequence[Slice], most: int) -> Iterator[list[Slice]]:
    """The slices, cut where need be, in runs of ``most`` elements; the last may have fewer."""
    chunk, room = list[Slice](), most
    for kind, name, start, count in slices:
        end = start + count
        while start < end:
            count = min(end - start, room)
            chunk.append((kind, name, start, count))
            start, room = start + count, room - count
            if not room:
                yield chunk
                chunk, room = [], most
    if chunk:
        yield chunk


def _misfit(held: Mapping[tuple[str, str], Tensor], slices: Sequence[Slice]) -> str | None:
    """What is wrong unless each element of what is held is in one slice."""
    ends = dict.fromkeys(held, 0)
    for kind, name, start, count in sorted(slices):
        if start == ends[kind, name]:
            ends[kind, name] += count
        else:
            ends[kind, name] = -1
    for (kind, name), tensor in held.items():
        if ends[kind, name] != tensor.numel():
            return f"{kind}/{name} is not there with its {tensor.numel()} elements, each once"
    return None


def _read(chunk: Sequence[Slice], read: Read) -> Tensor:
    flat = torch.empty(_size(chunk))
    for part, place in zip(chunk, flat.split([count for *_, count in chunk]), strict=True):
        place.copy_(read(*part))
    return flat


def _spread(
    held: Mapping[tuple[str, str], Tensor],
    chunk: Sequence[Slice],
    own: Tensor | None,
    source: int,
    world: World,
) -> None:
    """Rank ``source``'s chunk into every rank's tensors."""
    flat = torch.empty(_size(chunk), device=world.device) if own is None else own.to(world.device)
    torch.distributed.broadcast(flat, source)
    for (kind, name, start, count), part in zip(
        chunk, flat.split([count for *_, count in chunk]), strict=True
    ):
        held[kind, name].narrow(0, start, count).copy_(part)


def _size(chunk: Sequence[Slice]) -> int:
    return sum(count for *_, count in chunk)
