"""What Muon remembers on a rank, and what it works in: as ``engine.orthogonal`` asks for it.

Of a matrix it keeps one fp32 momentum, of the other parameters Adam's moments; under ZeRO-1 to 3 of what lies
in this rank's partition, without its padding. While it steps it holds the updates, on their way to the ranks
that orthogonalize them and back, and room for one matrix, on a GPU for some of one shape (``Room``).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from diffcore.engine.orthogonal.orthogonalization import Matrix, Room
from diffcore.engine.orthogonal.pieces import pieces
from diffcore.memory.planning.states import FULL, Sharing
from diffcore.memory.planning.stream import Stream


def states(sharing: Sharing, numels: Sequence[int]) -> list[int]:
    """Bytes of each tensor that it keeps on this rank."""
    s = sharing
    if s.stage == 0:
        sizes = [[n * FULL] if i in s.matrices else [n * FULL, n * FULL, 4] for i, n in enumerate(numels)]
        return [size for some in sizes for size in some]
    where = pieces(dict(enumerate(numels)), s.stage, s.world, s.partition(numels)) or {}
    mine = {i: sum(n for rank, _, n in parts if rank == s.rank) for i, parts in where.items()}
    momentum = sum(count for i, count in mine.items() if i in s.matrices)
    others = sum(mine.values()) - momentum
    return [momentum * FULL] * bool(momentum) + [others * FULL, others * FULL, 4] * bool(others)


def work(stream: Stream, sharing: Sharing, numels: Sequence[int], cuda: bool) -> None:
    """Add what it allocates and frees in a step; ``cuda``: where a GPU orthogonalizes."""
    s = sharing
    if not s.matrices:
        return
    where = pieces(dict(enumerate(numels)), s.stage, s.world, s.partition(numels))
    matrices = [Matrix(*shape, where[i] if where is not None else ()) for i, shape in s.matrices.items()]
    room = Room.of(matrices, s.rank, s.world, together=cuda)
    with _held(stream, room.flat), _held(stream, room.received):
        with _held(stream, room.joined), _held(stream, room.largest), _held(stream, room.squares):
            pass
        if where is None and s.world > 1 and s.cpu:
            stream.brief("temporary", room.flat * FULL)  # gloo gathers into a copy
    if s.offload and not s.cpu:
        with _held(stream, sum(matrix.held(s.rank) for matrix in matrices), host=True):
            pass


@contextmanager
def _held(stream: Stream, elements: int, host: bool = False) -> Iterator[None]:
    number = stream.allocate("temporary", elements * FULL, host=host)
    yield
    if elements:
        stream.free(number)
