"""The matrices of a network orthogonalized by all ranks together, each matrix by one of them.

Under ZeRO-0 every rank has all updates, and what each made of its matrices is gathered. Under ZeRO-1 to 3 a
matrix lies in pieces with several ranks: they go to the one that owns it for this, and come back, in two
all-to-alls. On a CPU, which rank that is changes no bit of the result; a GPU takes a rank's matrices of one
shape together, so there it may.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from diffcore.engine.orthogonal.newton_schulz import SQUARES, flops, orthogonalize, orthogonalize_together
from diffcore.engine.orthogonal.pieces import Piece
from diffcore.engine.ranks import World

RMS = 0.2
"""Root mean square of AdamW's usual updates. An orthogonal [r, c] matrix has 1 / sqrt(max(r, c)); scaled by
RMS sqrt(max(r, c)) it shares AdamW's rate and weight decay (Liu et al. 2025, arXiv 2502.16982, eq. 4)."""


@dataclass(frozen=True)
class Matrix:
    """A weight as [rows, columns], and where it lies: under ZeRO-0 whole with every rank, without pieces."""

    rows: int
    columns: int
    pieces: tuple[Piece, ...] = ()

    @property
    def numel(self) -> int:
        """Number of its elements."""
        return self.rows * self.columns

    @property
    def side(self) -> int:
        """The smaller of rows and columns."""
        return min(self.rows, self.columns)

    def held(self, rank: int) -> int:
        """Elements of it that ``rank`` has, in one piece at most."""
        return sum(count for holder, _, count in self.pieces if holder == rank)


def owners(matrices: Sequence[Matrix], world: int) -> list[int]:
    """The rank that orthogonalizes each matrix: costly ones first, each to the rank with the least to do.

    A rank that has most of a matrix keeps it, as long as that is no more than its share of the work.
    """
    costs = [flops(m.rows, m.columns, 5) for m in matrices]
    fair, loads, owned = sum(costs) / world, [0] * world, [0] * len(matrices)
    for number in sorted(range(len(matrices)), key=lambda i: (-costs[i], i)):
        holder = next((r for r, _, count in matrices[number].pieces if 2 * count > matrices[number].numel), 0)
        if not matrices[number].held(holder) or loads[holder] + costs[number] > fair:
            holder = loads.index(min(loads))
        owned[number] = holder
        loads[holder] += costs[number]
    return owned


def alike(matrices: Sequence[Matrix]) -> list[list[int]]:
    """Numbers of matrices of one shape, no more of them together than the largest matrix has elements."""
    most, groups = max((m.numel for m in matrices), default=0), list[list[int]]()
    open_at: dict[tuple[int, int], list[int]] = {}
    for number, m in enumerate(matrices):
        group = open_at.get((m.rows, m.columns))
        if group is None or (len(group) + 1) * m.numel > most:
            group = open_at[m.rows, m.columns] = []
            groups.append(group)
        group.append(number)
    return groups


@dataclass(frozen=True)
class Room:
    """Elements of fp32 that a rank works in, all at once, beside what it was given."""

    flat: int
    """Updates on their way out, and orthogonalized ones on their way in."""
    received: int
    """Under ZeRO-1 to 3 on several ranks: pieces of the matrices that are its to orthogonalize."""
    joined: int
    """The largest matrix, in one piece and from an aligned address on: some CPUs' kernels add up otherwise
    where they begin between."""
    largest: int
    """The largest matrix; on a GPU in halves, matrices of one shape in bf16 and what becomes of them."""
    squares: int
    """What the iterations make of the smaller side: SQUARES of fp32, or two of bf16 a matrix."""

    @classmethod
    def of(cls, matrices: Sequence[Matrix], rank: int, world: int, together: bool = False) -> Room:
        """Of ``rank`` of ``world``; as ``Orthogonalization`` asks for it. ``together``: on a GPU."""
        of = owners(matrices, world)
        numels = [sum(m.numel for m, o in zip(matrices, of, strict=True) if o == r) for r in range(world)]
        mine = [m for m, owner in zip(matrices, of, strict=True) if owner == rank]
        cut = any(matrix.pieces for matrix in matrices)
        squares = SQUARES * max((m.side for m in mine), default=0) ** 2
        joined = max((m.numel for m in mine), default=0)
        if together:
            joined, squares = 0, max((len(g) * mine[g[0]].side ** 2 for g in alike(mine)), default=0)
        return cls(
            sum(m.held(rank) for m in matrices) if cut else max(numels) * world,
            numels[rank] if cut and world > 1 else 0,
            joined,
            max((m.numel for m in mine), default=0),
            squares,
        )


class Orthogonalization:
    """Updates of ``matrices`` -> orthogonal ones of RMS ``RMS``, on the world's device."""

    def __init__(
        self, matrices: Sequence[Matrix], world: World, steps: int, together: bool | None = None
    ) -> None:
        """``together``: matrices of one shape at once, in bf16 (default: on a GPU)."""
        self.matrices, self.world, self.steps = matrices, world, steps
        self.together = world.device.type == "cuda" if together is None else together
        self.owners = owners(matrices, world.size)
        self.room = Room.of(matrices, world.rank, world.size, self.together)
        self.cut = any(matrix.pieces for matrix in matrices)
        self.held = [n for n, m in enumerate(matrices) if not self.cut or m.held(world.rank)]
        """Matrices of which this rank has something."""

    def __call__(self, updates: Sequence[Tensor]) -> list[Tensor]:
        """The orthogonalized updates of what this rank holds, fp32, flat. A collective.

        ``updates``: one tensor for each of ``held``, of any device: its piece, under ZeRO-0 the whole.
        """
        rank, size, cut = self.world.rank, self.world.size, self.cut
        numels = [update.numel() for update in updates]
        # By owner: under ZeRO-0 in equal shares, which are gathered, else one after another.
        of = [[i for i, number in enumerate(self.held) if self.owners[number] == r] for r in range(size)]
        leaving = [sum(numels[i] for i in some) for some in of]
        flat = torch.empty(self.room.flat, device=self.world.device)
        results = [flat] * len(updates)
        for r, some in enumerate(of):
            at = sum(leaving[:r]) if cut else r * (self.room.flat // size)
            for i in some:
                results[i] = flat.narrow(0, at, numels[i])
                at += numels[i]
        if leaving_here := range(len(updates)) if cut else of[rank]:
            torch._foreach_copy_(
                [results[i] for i in leaving_here], [updates[i].reshape(-1) for i in leaving_here]
            )
        if not cut or size == 1:
            self._work([(self.matrices[self.held[i]], [results[i]]) for i in of[rank]])
            if size > 1:
                from deepspeed import comm

                share = self.room.flat // size
                comm.all_gather_into_tensor(flat, flat.narrow(0, rank * share, share))
            return results
        self._exchanged(flat, leaving)
        return results

    def _exchanged(self, flat: Tensor, leaving: list[int]) -> None:
        """Pieces to their matrices' owners, and back in their place."""
        from deepspeed import comm

        own = [m for m, owner in zip(self.matrices, self.owners, strict=True) if owner == self.world.rank]
        coming = [sum(m.held(r) for m in own) for r in range(self.world.size)]
        received = torch.empty(self.room.received, device=self.world.device)
        comm.all_to_all_single(received, flat, output_split_sizes=coming, input_split_sizes=leaving)
        pieces: list[list[Tensor]] = [[] for _ in own]
        at = 0
        for r in range(self.world.size):  # as they came: within a rank in the matrices' order
            for matrix, parts in zip(own, pieces, strict=True):
                if count := matrix.held(r):
                    parts.append(received.narrow(0, at, count))
                    at += count
        self._work(list(zip(own, pieces, strict=True)))
        comm.all_to_all_single(flat, received, output_split_sizes=leaving, input_split_sizes=coming)

    def _work(self, mine: Sequence[tuple[Matrix, list[Tensor]]]) -> None:
        """Orthogonalize matrices in the pieces in which they lie here, in place."""
        if self.together:
            return self._work_together(mine)
        device, room = self.world.device, self.room
        joined, out = torch.empty(room.joined, device=device), torch.empty(room.largest, device=device)
        squares = torch.empty(room.squares, device=device)
        for matrix, pieces in mine:
            shape = (matrix.rows, matrix.columns)
            flat = joined.narrow(0, 0, matrix.numel)
            torch.cat(pieces, out=flat)
            scale = RMS * sqrt(max(shape))
            done = orthogonalize(
                flat.view(shape), out.narrow(0, 0, matrix.numel).view(shape), squares, self.steps, scale
            ).view(-1)
            for piece, part in zip(pieces, done.split([len(piece) for piece in pieces]), strict=True):
                piece.copy_(part)

    def _work_together(self, mine: Sequence[tuple[Matrix, list[Tensor]]]) -> None:
        """``_work`` in bf16, matrices of one shape at once."""
        device, room = self.world.device, self.room
        halves = torch.empty(2, room.largest, dtype=torch.bfloat16, device=device)
        squares = torch.empty(2 * room.squares, dtype=torch.bfloat16, device=device)
        for group in alike([matrix for matrix, _ in mine]):
            matrix = mine[group[0]][0]
            x, out = (
                half.narrow(0, 0, len(group) * matrix.numel).view(len(group), matrix.rows, matrix.columns)
                for half in halves
            )
            pieces = [piece for number in group for piece in mine[number][1]]
            sizes = [len(piece) for piece in pieces]
            torch._foreach_copy_(list(x.view(-1).split(sizes)), pieces)
            scale = RMS * sqrt(max(matrix.rows, matrix.columns))
            done = orthogonalize_together(x, out, squares, self.steps, scale)
            torch._foreach_copy_(pieces, list(done.view(-1).split(sizes)))
