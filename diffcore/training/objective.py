"""What a step of a run minimizes, stage by stage (``train.stages``), and the work that it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diffcore.config.stages import Span
from diffcore.config.tree import Config
from diffcore.diffusion.loss import WEIGHTS, Network, denoising_loss
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.models.flops import optimizer_flops, training_flops
from diffcore.training.batches import MicroBatch
from shards.schema import Attribute


class Objective:
    """The loss of a micro batch: each stage has its noise schedule, known by its images' side."""

    def __init__(self, config: Config, size: int, device: torch.device) -> None:
        """``size``: edge of the packed images, pixels."""
        self._config, self._size, self._device, self._side = config, size, device, size
        self._of: dict[int, tuple[NoiseSchedule, Tensor]] = {}
        for span in config.train.spans:
            schedule = schedule_of(config, span, size)
            weights_T = WEIGHTS[config.diffusion.loss_weight](schedule).to(device)
            self._of[span.side(size)] = schedule, weights_T

    def __call__(self, network: Network, batch: MicroBatch) -> Tensor:
        """Losses of the samples: [B]."""
        schedule, weights_T = self._of[batch.images.shape[-1]]
        return denoising_loss(network, schedule, weights_T, batch.images, batch.labels, batch.draws)

    def begin(self, step: int) -> str | None:
        """Called before every step (0 is a run's first): a line for the log where its images have another
        side than those of the step before."""
        side = self._config.train.side(step, self._size)
        if side == self._side:
            return None
        self._side = side
        if self._device.type == "cuda":
            torch.cuda.empty_cache()  # blocks of the other size, of which the plan has none
        return f"step {step}: from here on images of {side} x {side} pixels"

    def entered(self, first: int, end: int) -> bool:
        """Whether one of the steps ``first`` .. ``end`` - 1 is the first on images of another side."""
        return any(first <= span.first < end for span in self._config.train.spans[1:])


def schedule_of(config: Config, span: Span, size: int) -> NoiseSchedule:
    """The noise schedule of a span of steps, with packed images of ``size`` pixels."""
    schedule = NoiseSchedule.of(config.diffusion)
    return schedule.shifted(size / span.stage.side) if span.stage and span.stage.shift else schedule


class Work:
    """Floating-point work of a run's steps, over all ranks: what the network's passes take (models/flops.py).

    A closed form of the step: a resume, or another world size, changes nothing.
    """

    def __init__(self, config: Config, schema: Sequence[Attribute], size: int) -> None:
        self._batch = config.batch.size
        self.optimizer = optimizer_flops(config.model, config.optimizer, schema, size)
        """FLOPs of the optimizer's matrix products in a step, beside those of the images."""
        self._spans = [
            (span, training_flops(config.model, schema, span.side(size))) for span in config.train.spans
        ]

    def flops(self, first: int, end: int) -> int:
        """FLOPs of the steps ``first`` .. ``end`` - 1 (0 is a run's first)."""
        overlaps = ((max(0, min(end, span.end) - max(first, span.first)), each) for span, each in self._spans)
        return self._batch * sum(steps * each for steps, each in overlaps)

    def an_image(self, first: int, end: int) -> int:
        """FLOPs of one of their images, in the mean; at least one step."""
        return self.flops(first, end) // (self._batch * (end - first))
