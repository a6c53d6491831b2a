"""A trained network, ready to draw: opened from a run folder, one of its checkpoints, or an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffbase.cli import InputError
from diffcore import models
from diffcore.config.tree import Config, Sampling
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.engine.ranks import one_device
from diffcore.runs import source
from diffcore.runs.draw import BATCH, choose_labels, draw
from diffcore.runs.sampling import check_labels, check_seed, place_of, sampling_with
from shards.schema import Attribute


@dataclass(frozen=True)
class TrainedModel:
    """A network with a checkpoint's weights, and what is needed to draw with it."""

    path: Path
    """The run folder, checkpoint, export or file that was opened."""
    config: Config = field(repr=False)
    """Of the run."""
    schema: tuple[Attribute, ...] = field(repr=False)
    """The attributes that it was trained with, in the order of labels' columns."""
    size: int
    """Edge of the images, pixels."""
    step: int
    """Of the training; 0 where an export does not say."""
    network: nn.Module = field(repr=False)
    """In evaluation mode on ``device``; see ``diffcore.models`` for what it takes and gives."""
    schedule: NoiseSchedule = field(repr=False)
    device: torch.device
    fingerprint: str = field(repr=False)
    """Fingerprint of the shards that the network learned from."""

    def sample(
        self,
        count: int | None = None,
        labels: Mapping[str, int | str] | None = None,
        *,
        seed: int = 0,
        batch: int = BATCH,
        sampler: str | None = None,
        steps: int | None = None,
        spacing: str | None = None,
        guidance: float | None = None,
        guidance_rescale: float | None = None,
        guidance_interval: tuple[float, float] | None = None,
        eta: float | None = None,
        clamp: bool | None = None,
        **attributes: int | str,
    ) -> NDArray[np.uint8]:
        """Draw ``count`` images: uint8 [N, H, W, 3], as ``python -m diffcore.sample`` draws them.

        Attributes that are asked for are keywords (``hair_color=3`` or ``hair_color="blond"``) or in
        ``labels``, which takes any name, such as ``class`` or ``steps``; the others are drawn at random by
        ``seed`` (``sample_labels`` tells them). The settings are the fields of ``config.sampling``: what is
        None is what a sweep recommended to the run, else the run's own. Image i depends on its labels,
        ``seed`` and i; ``batch``, how many are drawn at a time, changes rounding at most. InputError for what
        is unknown or not allowed.
        """
        given: dict[str, Any] = {
            "sampler": sampler, "steps": steps, "spacing": spacing, "guidance": guidance,
            "guidance_rescale": guidance_rescale, "guidance_interval": guidance_interval, "eta": eta,
            "clamp": clamp,
        }  # fmt: skip
        sampling = sampling_with(self.config, self.path, given)
        if batch < 1:
            raise InputError(f"batch {batch}: at least 1")
        return self.draw(self._labels(count, labels, seed, attributes), sampling, int(seed), batch)

    def sample_labels(
        self,
        count: int | None = None,
        labels: Mapping[str, int | str] | None = None,
        *,
        seed: int = 0,
        **attributes: int | str,
    ) -> NDArray[np.int64]:
        """The labels of the images that ``sample`` draws with the same arguments: int64 [N, A].

        Columns are in the order of ``schema``. Errors are those of ``sample``.
        """
        chosen: NDArray[np.int64] = self._labels(count, labels, seed, attributes).numpy()
        return chosen

    def _labels(
        self,
        count: int | None,
        labels: Mapping[str, int | str] | None,
        seed: int,
        attributes: Mapping[str, int | str],
    ) -> Tensor:
        """What is asked for, and the rest at random: int64 [N, A]."""
        names = [attribute.name for attribute in self.schema]
        for name in (one for one in attributes if place_of(one, names) is None):
            settings = ", ".join(name for name in Sampling.model_fields if name not in ("every", "count"))
            raise InputError(f"{name!r} is no attribute ({', '.join(names)}) and no setting ({settings})")
        if twice := attributes.keys() & (labels or {}).keys():
            raise InputError(f"{min(twice)} is given as a keyword and in labels; give it once")
        wanted = check_labels({**(labels or {}), **attributes}, self.schema)
        count = self.config.sampling.count if count is None else count
        if not isinstance(count, Integral) or count < 1:
            raise InputError(f"count {count}: allowed are whole numbers from 1")
        check_seed(seed)
        return choose_labels(self.schema, wanted, int(seed), int(count))

    def draw(
        self,
        labels_BA: Tensor,
        sampling: Sampling,
        seed: int,
        batch: int = BATCH,
        positions: Sequence[int] | None = None,
        report: Callable[[int], None] = lambda done: None,
    ) -> NDArray[np.uint8]:
        """Images for ``labels``, ``batch`` at a time: uint8 [B, H, W, 3].

        At ``positions`` of the noise (default 0 .. B - 1). ``report`` is told how many are done.
        """
        places = range(len(labels_BA)) if positions is None else positions
        return draw(
            self.network, self.schedule, labels_BA, places, sampling,
            shape=(3, self.size, self.size), seed=seed, device=self.device, batch=batch,
            report=report,
        )  # fmt: skip


def load_model(
    path: Path | str,
    weights: str = "ema",
    checkpoint: str | int = "newest",
    device: torch.device | str | None = None,
) -> TrainedModel:
    """The network of what ``source.find`` takes: a run folder, a checkpoint, an export, a file with a card.

    InputError where there is none.

    ``weights``: ema, or raw for what the optimizer has. ``checkpoint``, of a run: newest, best or a step.
    ``device``: such as "cuda:1" or "cpu"; without one the GPU, or the CPU where there is none.
    """
    if weights not in source.FILES:
        raise InputError(f"weights {weights!r}: allowed are {', '.join(source.FILES)}")
    path = Path(path)
    found = source.find(path, str(checkpoint))
    config, device = found.config, one_device(device)
    network = _network(found, weights)
    network.to(device).eval().requires_grad_(False)
    schedule = NoiseSchedule.of(config.diffusion)
    return TrainedModel(
        path, config, found.schema, found.size, found.step, network, schedule, device, found.fingerprint
    )


def load_network(folder: Path | str, which: str = "ema") -> nn.Module:
    """The network alone, in evaluation mode on the CPU; see ``models`` for what it takes and gives."""
    found = source.find(Path(folder))
    return _network(found, which).eval().requires_grad_(False)


def _network(found: source.Source, which: str) -> nn.Module:
    """The network with the weights. InputError where they are another's, before memory is taken for it."""
    weights = found.weights(which)
    with torch.device("meta"):
        planned = models.build(found.config.model, found.schema, found.size).state_dict()
    wanted = {name: tuple(tensor.shape) for name, tensor in planned.items()}
    given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    for name in [*wanted, *given]:
        if wanted.get(name) != given.get(name):
            has, wants = (sizes.get(name, "none") for sizes in (given, wanted))
            raise InputError(
                f"{found.folder}: these weights are another network's than its config's: {name} is {has}, "
                f"not {wants}"
            )
    network = models.build(found.config.model, found.schema, found.size)
    network.load_state_dict(weights)
    return network
