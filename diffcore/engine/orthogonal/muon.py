"""Muon: momentum of the hidden layers' weights, orthogonalized; AdamW for all other parameters.

Jordan et al. 2024 (https://kellerjordan.github.io/posts/muon/): m <- mu m + (1 - mu) g, and the step goes
along mu m + (1 - mu) g, Nesterov's, orthogonalized as a matrix [out, in k k]. Scaled as in Liu et al. 2025 it
takes AdamW's rate and weight decay. On matrices it is torch.optim.Muon with match_rms_adamw, in fp32 instead
of bf16.

DeepSpeed 0.19.8 has a Muon of its own, which takes weights of two dimensions alone, clips what is
orthogonalized already, and under ZeRO has each rank orthogonalize every matrix that it has a part of. This
one is a plain optimizer to DeepSpeed that knows where in its flat partitions the matrices lie (``bind``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffcore.engine.orthogonal.orthogonalization import Matrix, Orthogonalization
from diffcore.engine.orthogonal.pieces import Piece
from diffcore.engine.partitions import ADAM_MOMENTS, MOMENTUM, Packed, Place
from diffcore.engine.ranks import World


@dataclass(frozen=True)
class Slot:
    """Elements of one parameter: of the ``shard``-th stepped tensor, ``count`` from ``offset`` on.

    In what Muon, or AdamW, remembers of that tensor they lie from ``at`` on.
    """

    shard: int
    offset: int
    count: int
    at: int


@dataclass(frozen=True)
class Unit:
    """Tensors that are stepped on at once: a flat partition, or under ZeRO-0 all parameters."""

    stepped: Sequence[Tensor]
    orthogonalization: Orthogonalization
    matrices: Sequence[Slot]
    """What this rank has of the matrices, in their order."""
    others: Sequence[Slot]
    """What it has of AdamW's parameters."""


class Muon(torch.optim.Optimizer):
    """Momentum and Newton-Schulz for matrices, AdamW for the rest. Its step is a collective.

    Steps are left out while ``overflow`` is set, or where the device finds a 1 in ``found_inf``.
    """

    overflow = False
    found_inf: Tensor | None = None

    def __init__(self, parameters: Iterable[Tensor], *, ns_steps: int, **settings: Any) -> None:
        """``settings``: lr, betas, eps, weight_decay and momentum, as ``config.tree.Optimizer`` has them."""
        self.ns_steps = ns_steps
        super().__init__(parameters, settings)
        self._units: dict[Tensor, Unit] = {}

    def bind(self, units: Iterable[Unit]) -> None:
        """Say what lies where, once DeepSpeed has made the partitions (``units``)."""
        self._units = {unit.stepped[0]: unit for unit in units}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Step on each group's tensors, which are those of a unit."""
        found = self.found_inf
        on_host = found is None or found.device.type == "cpu"
        if not self.overflow and not (on_host and found is not None and bool(found)):
            self.take(None if on_host else found)

    @torch.no_grad()
    def take(self, skip: Tensor | None) -> None:
        """The step itself. Where the device finds a 1 in ``skip``, momentum, moments and weights stay."""
        for group in self.param_groups:
            if group["params"]:
                unit = self._units[group["params"][0]]
                if unit.stepped[0] not in self.state:
                    self._make(unit, 0)
                for tensor in unit.stepped:
                    if tensor.grad is None:  # as where several ranks average it
                        tensor.grad = torch.zeros_like(tensor)
                self._step_matrices(unit, group, skip)
                self._step_others(unit, group, skip)

    def _step_matrices(self, unit: Unit, group: Mapping[str, Any], skip: Tensor | None) -> None:
        weights = [_part(unit.stepped, slot) for slot in unit.matrices]
        gradients = [_part([t.grad for t in unit.stepped], slot) for slot in unit.matrices]
        momenta = [self._state(unit, MOMENTUM, slot) for slot in unit.matrices]
        lr, new = group["lr"], 1 - group["momentum"]
        if weights and skip is None:
            torch._foreach_lerp_(momenta, gradients, new)
        elif skip is not None:
            for momentum, gradient in zip(momenta, gradients, strict=True):
                gradient.masked_fill_(skip > 0, 0.0)
                momentum.lerp_(gradient, new * (1 - skip))
        if weights:
            torch._foreach_lerp_(gradients, momenta, group["momentum"])
        # A rank without any helps the others all the same.
        orthogonal = unit.orthogonalization(gradients)
        steps = [step.to(weight.device) for step, weight in zip(orthogonal, weights, strict=True)]
        if not weights:
            return
        if skip is None:
            torch._foreach_mul_(weights, 1 - lr * group["weight_decay"])
            torch._foreach_add_(weights, steps, alpha=-lr)
        else:
            rate = lr * (1 - skip)
            torch._foreach_mul_(weights, 1 - rate * group["weight_decay"])
            torch._foreach_mul_(steps, -rate)
            torch._foreach_add_(weights, steps)

    def _step_others(self, unit: Unit, group: Mapping[str, Any], skip: Tensor | None) -> None:
        """AdamW in torch's fused form, on runs of neighbours."""
        slots = _runs(unit.others)
        if not slots:
            return
        counts = [self.state[unit.stepped[shard]]["step"] for shard in {slot.shard: None for slot in slots}]
        torch._foreach_add_(counts, 1.0)
        torch._fused_adamw_(
            [_part(unit.stepped, slot) for slot in slots],
            [_part([t.grad for t in unit.stepped], slot) for slot in slots],
            [self._state(unit, ADAM_MOMENTS[0], slot) for slot in slots],
            [self._state(unit, ADAM_MOMENTS[1], slot) for slot in slots],
            [],
            [self.state[unit.stepped[slot.shard]]["step"] for slot in slots],
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            found_inf=skip,
        )
        if skip is not None:
            torch._foreach_sub_(counts, [skip] * len(counts))

    # --- what it remembers ----------------------------------------------------------------------------

    def _state(self, unit: Unit, kind: str, slot: Slot) -> Tensor:
        state: Tensor = self.state[unit.stepped[slot.shard]][kind]
        return state.narrow(0, slot.at, slot.count)

    def _make(self, unit: Unit, updates: int) -> None:
        """Momentum and moments, zero, after ``updates`` steps."""
        for number, tensor in enumerate(unit.stepped):
            state = self.state[tensor]
            for kinds, slots in (((MOMENTUM,), unit.matrices), (ADAM_MOMENTS, unit.others)):
                if count := sum(slot.count for slot in slots if slot.shard == number):
                    for kind in kinds:
                        state[kind] = torch.zeros(count, dtype=torch.float32, device=tensor.device)
            if ADAM_MOMENTS[0] in state:
                state["step"] = torch.tensor(float(updates), device=tensor.device)

    def make_states(self, updates: int) -> None:
        """What a checkpoint after ``updates`` steps fills."""
        for unit in self._units.values():
            self._make(unit, updates)

    def moments(self) -> dict[str, list[Packed | None]]:
        """Momentum and moments by name, for each stepped tensor in order; empty before the first step."""
        found: dict[str, list[Packed | None]] = {kind: [] for kind in (MOMENTUM, *ADAM_MOMENTS)}
        for unit in self._units.values():
            for number, tensor in enumerate(unit.stepped):
                if tensor not in self.state:
                    return {}
                state = self.state[tensor]
                for kind, of in found.items():
                    slots = unit.matrices if kind == MOMENTUM else unit.others
                    starts = {slot.offset: slot.at for slot in slots if slot.shard == number}
                    of.append(Packed(state[kind], starts) if kind in state else None)
        return found


def _part(tensors: Sequence[Tensor | None], slot: Slot) -> Tensor:
    """A slot's elements of a weight or a gradient, flat."""
    tensor = tensors[slot.shard]
    assert tensor is not None
    return tensor.detach().reshape(-1).narrow(0, slot.offset, slot.count)


def _runs(slots: Sequence[Slot]) -> list[Slot]:
    """Neighbours as one: fewer tensors for the kernel."""
    runs: list[Slot] = []
    for slot in slots:
        if runs and (last := runs[-1]).shard == slot.shard and last.offset + last.count == slot.offset:
            runs[-1] = Slot(last.shard, last.offset, last.count + slot.count, last.at)
        else:
            runs.append(slot)
    return runs


def units(
    stepped: Sequence[Tensor],
    places: Iterable[Place],
    shapes: Mapping[str, tuple[int, int]],
    pieces: Mapping[str, tuple[Piece, ...]] | None,
    world: World,
    steps: int,
) -> list[Unit]:
    """What ``Muon`` steps on at once.

    ``stepped``: what DeepSpeed hands to it: flat partitions, one at a time, or without ``pieces`` the
    parameters themselves, together. ``places``: what this rank has of each parameter, in order. ``shapes``:
    the matrices as [rows, columns]. ``pieces``: which ranks have what of them.
    """
    together = [range(len(stepped))] if pieces is None else [range(i, i + 1) for i in range(len(stepped))]
    here = list(places)
    of = {place.name: place.shard for place in here}
    made = []
    for shards in together:
        ends: dict[tuple[bool, int], int] = {}
        slots: dict[bool, list[Slot]] = {True: [], False: []}
        for place in here:
            if place.shard in shards and place.count:
                key = (place.name in shapes, place.shard)
                at = ends.get(key, 0)
                ends[key] = at + place.count
                slots[key[0]].append(Slot(place.shard - shards[0], place.offset, place.count, at))
        # Of a single partition a rank may have nothing of some.
        names = [name for name in shapes if of.get(name, 0) in shards]
        matrices = [Matrix(*shapes[name], pieces[name] if pieces is not None else ()) for name in names]
        made.append(
            Unit(
                [stepped[shard] for shard in shards],
                Orthogonalization(matrices, world, steps),
                slots[True],
                slots[False],
            )
        )
    return made
