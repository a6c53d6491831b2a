"""A network's states as plain tensors by parameter name, wherever ZeRO keeps them.

Checkpoints and the EMA need the network's fp32 weights and Adam's moments by parameter name, whatever the
ZeRO stage and world size were; DeepSpeed keeps them in flat partitions. ``NamedStates.parts`` translates.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch
from torch import Tensor, nn

from diffcore.engine.filling import Read, Slice, fill_together
from diffcore.engine.ranks import World, sum_over_ranks

ADAM_MOMENTS = ("exp_avg", "exp_avg_sq")
MOMENTUM = "momentum"
"""Muon's, of the parameters that are matrices to it (``orthogonal.matrices``); the others have moments."""
GATHER_ELEMENTS = 16 << 20
"""Elements that are gathered in one collective: 64 MiB."""


@dataclass(frozen=True)
class Place:
    """Where elements ``start`` .. ``start + count`` of a flattened parameter are on this rank.

    ``offset`` elements into the ``shard``-th tensor of ``Engine.masters`` and of all that is laid out so.
    """

    name: str
    start: int
    count: int
    shard: int
    offset: int


@dataclass(frozen=True)
class Packed:
    """Some parameters' elements of a tensor laid out like ``masters``, without the others between them."""

    flat: Tensor
    starts: Mapping[int, int]
    """Where in the whole (``Place.offset``) -> where in ``flat`` a parameter's elements begin."""


Shard = Tensor | Packed | None
"""Laid out like one of ``Engine.masters``; Packed or None where it is of some parameters only, or of none."""
Part = tuple[str, int, Tensor]
"""(parameter, start, fp32 tensor [n]): elements start .. start + n of a flattened parameter."""


class NamedStates(ABC):
    """Weights, masters and moments of a wrapped network; what the wrapper itself knows is abstract."""

    world: World
    stage: int
    names: dict[nn.Parameter, str]
    """The network's parameters, in order."""
    _optimizer: Any
    """DeepSpeed's, or under ZeRO-0 torch's."""
    _unwrapped: bool
    """Whether it is torch's, which steps on the parameters themselves."""

    @property
    @abstractmethod
    def _base_optimizer(self) -> torch.optim.Optimizer:
        """torch's optimizer."""

    @property
    @abstractmethod
    def _stepped(self) -> list[Tensor]:
        """What the optimizer steps on: this rank's flat fp32 partitions, or the parameters themselves."""

    @abstractmethod
    def _gathered(self) -> AbstractContextManager[None]:
        """Every parameter whole on every rank; under ZeRO-3 changes are partitioned again at the end."""

    def masters(self) -> list[Tensor]:
        """What the optimizer steps on: this rank's flat fp32 partitions, under ZeRO-0 the parameters."""
        return [tensor.detach() for tensor in self._stepped]

    def moments(self) -> Mapping[str, Sequence[Shard]]:
        """Adam's moments by name, laid out like ``masters``; empty before the first step."""
        states = [self._base_optimizer.state.get(tensor, {}) for tensor in self._stepped]
        return {m: [state[m] for state in states] for m in ADAM_MOMENTS if all(m in s for s in states)}

    def _places(self) -> Iterator[Place]:
        """Where this rank holds which elements, in the parameters' order."""
        for i, (parameter, name) in enumerate(self.names.items()):
            size = self.size_of(parameter)
            if self._unwrapped:
                yield Place(name, 0, size, i, 0)
            elif self.stage == 3:  # equal parts, padded at the end
                shard, offset, _ = self._optimizer.grad_position[self._optimizer.get_param_id(parameter)]
                start, count = _share(size, self.world)
                yield Place(name, start, count, shard, offset)
            elif (mapped := cast(Any, parameter)._hp_mapping) is not None:  # in this rank's partition
                of, at = mapped.lp_fragment_address, mapped.hp_fragment_address
                yield Place(name, of.start, of.numel, mapped.param_group_index, at.start)

    def is_finite(self) -> bool:
        """Whether every weight of every rank is a finite number. A collective."""
        bad = torch.zeros((), device=self.world.device)
        for _, _, part in self.parts(self.masters()):  # without the padding, which may hold anything
            bad += (~part.isfinite()).sum().to(bad.device)
        return not sum_over_ranks(bad).item()

    def held(self, shards: Sequence[Shard]) -> Iterator[Part]:
        """Every element that this rank holds in tensors laid out like ``masters``: views."""
        for p in self._places():
            shard, at = shards[p.shard], p.offset
            if isinstance(shard, Tensor):
                flat = shard
            elif shard is not None and p.offset in shard.starts:
                flat, at = shard.flat, shard.starts[p.offset]
            else:
                continue
            yield p.name, p.start, flat.detach().view(-1).narrow(0, at, p.count)

    def parts(self, shards: Sequence[Shard]) -> Iterator[Part]:
        """What this rank answers for of tensors laid out like ``masters``: views.

        Over all ranks each element comes once. Not a collective; valid until the next step.
        """
        for name, start, part in self.held(shards):
            if self._unwrapped:  # all ranks hold the same
                start, count = _share(part.numel(), self.world)
                part = part.narrow(0, start, count)
            if part.numel():
                yield name, start, part

    def whole(self, shards: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """(name, fp32 tensor) of every parameter, whole on every rank, of tensors laid out like ``masters``.

        A collective: all ranks iterate to the end. A tensor is valid until the next one.
        """
        shapes = self.shapes()
        if self._unwrapped:
            yield from ((name, held.view(shapes[name])) for name, _, held in self.held(shards))
            return
        mine = {name: (start, part) for name, start, part in self.parts(shards)}
        for bucket in _buckets({name: prod(shape) for name, shape in shapes.items()}, GATHER_ELEMENTS):
            flat = torch.zeros(sum(bucket.values()), device=self.world.device)
            tensors = dict(zip(bucket, flat.split(list(bucket.values())), strict=True))
            for name in bucket.keys() & mine.keys():
                start, part = mine[name]
                tensors[name][start : start + part.numel()].copy_(part)
            torch.distributed.all_reduce(flat)  # a sum of disjoint parts: exact
            yield from ((name, tensor.view(shapes[name])) for name, tensor in tensors.items())

    def full_weights(self) -> Iterator[tuple[str, Tensor]]:
        """``whole`` of the fp32 weights."""
        return self.whole(self.masters())

    def fill(
        self, targets: Mapping[str, Sequence[Shard]], read: Read, slices: Sequence[Slice] | None = None
    ) -> None:
        """Read tensors laid out like ``masters``, by kind.

        Under ZeRO-0, where every rank holds all, a collective: each reads a part for all. ``slices``: how
        they lie in the files (default: parameter by parameter), and InputError is on every rank then.
        """
        if self._unwrapped and self.world.size > 1:
            held = {(kind, name): part for kind, of in targets.items() for name, _, part in self.held(of)}
            whole = [(*key, 0, part.numel()) for key, part in held.items()]
            # A chunk takes no more than the gradients do.
            fill_together(held, whole if slices is None else slices, read, self.world, self.parameters)
            return
        for kind, shards in targets.items():
            for name, start, part in self.held(shards):
                part.copy_(read(kind, name, start, part.numel()))

    def states(self, updates: int) -> dict[str, Sequence[Shard]]:
        """What a checkpoint after ``updates`` optimizer steps fills: fp32 weights and, but before the first,
        the optimizer's moments. These are made where there are none."""
        self._make_moments(updates)
        return {"weights": self.masters(), **(self.moments() if updates else {})}

    def misfit(self, shapes: Mapping[str, list[int]]) -> str | None:
        """How weights of these ``shapes``, by name, do not fit this network; None where they do."""
        mine = self.shapes()
        for name in sorted(mine.keys() | shapes.keys()):
            there = shapes.get(name, "missing")
            if there != mine.get(name, "not in this model"):
                return f"{name} is {there}, this model has {mine.get(name, 'not in this model')}"
        return None

    def _make_moments(self, updates: int) -> None:
        """Adam makes its moments at the first step; make them now, so that they can be filled."""
        for stepped in self._stepped:
            state = self._base_optimizer.state[stepped]
            state["step"] = torch.tensor(float(updates), device=stepped.device)  # where fused Adam wants it
            for moment in ADAM_MOMENTS:
                state[moment] = torch.zeros_like(stepped)
        link = getattr(self._optimizer, "_lazy_init_hp_params_optimizer_state", None)
        if link is not None:
            link()

    def _shape(self, parameter: nn.Parameter) -> torch.Size:
        return getattr(parameter, "ds_shape", parameter.shape)

    def shapes(self) -> dict[str, list[int]]:
        """Shape of every parameter, whole, by name."""
        return {name: list(self._shape(parameter)) for parameter, name in self.names.items()}

    @property
    def parameters(self) -> int:
        """Number of trainable parameters, whole."""
        return sum(self.size_of(parameter) for parameter in self.names)

    def size_of(self, parameter: nn.Parameter) -> int:
        """Elements of a parameter, whole (under ZeRO-3 the module's own tensor is empty)."""
        return self._shape(parameter).numel()

    def write_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Set the compute weights (not the masters) on all ranks, from whole tensors. A collective."""
        parameters = {name: parameter for parameter, name in self.names.items()}
        with self._gathered(), torch.no_grad():
            for name, value in weights:
                parameters[name].copy_(value)

    @contextmanager
    def swapped(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Compute with other weights (the EMA's, say) for a while. A collective: all ranks iterate."""
        # Under ZeRO-0 the compute weights are the masters: keep them aside.
        own = [(name, p.detach().clone()) for p, name in self.names.items()] if self._unwrapped else None
        self.write_weights(weights)
        try:
            yield
        finally:
            self.write_weights(own if own is not None else self.full_weights())


def _share(size: int, world: World) -> tuple[int, int]:
    """(start, count) of this rank's equal part of ``size`` elements; the last parts may be short or empty."""
    share = -(-size // world.size)
    start = min(world.rank * share, size)
    return start, min(share, size - start)


def _buckets(sizes: Mapping[str, int], most: int) -> Iterator[dict[str, int]]:
    """Runs of neighbours with at most ``most`` elements, or one that has more alone."""
    bucket: dict[str, int] = {}
    for name, size in sizes.items():
        if bucket and sum(bucket.values()) + size > most:
            yield bucket
            bucket = {}
        bucket[name] = size
    if bucket:
        yield bucket
