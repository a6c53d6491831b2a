"""Drawing with a network: some images, or many that the ranks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffcore.config.tree import Sampling
from diffcore.diffusion import randomness
from diffcore.diffusion.guidance import guided
from diffcore.diffusion.pixels import to_pixels
from diffcore.diffusion.samplers import SAMPLERS, Steps
from diffcore.diffusion.schedule import NoiseSchedule
from diffcore.diffusion.spacing import SPACINGS
from diffcore.engine.ranks import World, sum_over_ranks
from shards.schema import Attribute

BATCH = 64


def draw(
    network: Any,
    schedule: NoiseSchedule,
    labels_NA: Tensor,
    positions: Sequence[int],
    sampling: Sampling,
    *,
    shape: Sequence[int],
    seed: int,
    device: torch.device,
    batch: int = BATCH,
    report: Callable[[int], None] = lambda done: None,
) -> NDArray[np.uint8]:
    """Images for ``labels``, ``batch`` at a time: uint8 [N, H, W, 3]; ``shape`` is [C, H, W].

    Image i depends on its labels, ``seed`` and ``positions[i]``, not on the batch that it is drawn in.
    ``report`` is told how many are done, batch by batch.
    """

    steps: Steps = sampling.steps
    if sampling.spacing != "auto":
        steps = SPACINGS[sampling.spacing](schedule, sampling.steps)

    def some(labels_BA: Tensor, places: Sequence[int]) -> NDArray[np.uint8]:
        def noise(step: int) -> Tensor:
            return randomness.normal(seed, "sample", places, shape, step).to(device)

        denoise = guided(
            network,
            schedule,
            labels_BA.to(device),
            sampling.guidance,
            rescale=sampling.guidance_rescale,
            interval=sampling.guidance_interval,
            clamp=sampling.clamp,
        )
        sampler = SAMPLERS[sampling.sampler]
        # Step 0 of the noise is x_T; the samplers' own steps follow.
        x0 = sampler(denoise, schedule, noise(0), steps, lambda step: noise(step + 1), sampling.eta)
        return to_pixels(schedule.unscale(x0))

    with torch.no_grad():
        starts = range(0, len(labels_NA), batch)
        parts = []
        for at in starts:
            parts.append(some(labels_NA[at : at + batch], positions[at : at + batch]))
            report(at + len(parts[-1]))
    return np.concatenate([np.empty((0, *shape[1:], shape[0]), np.uint8), *parts])


def draw_shared(
    network: Any,
    schedule: NoiseSchedule,
    labels_NA: Tensor,
    sampling: Sampling,
    *,
    shape: Sequence[int],
    seed: int,
    world: World,
) -> NDArray[np.uint8]:
    """Images for ``labels``, whole on every rank: uint8 [N, H, W, 3]. Every rank draws its share. A
    collective.

    Equal shares: under ZeRO-3 every forward is a collective, so no rank may have one more.
    """
    count = len(labels_NA)
    share = -(-count // world.size)
    mine = [place % count for place in range(world.rank * share, (world.rank + 1) * share)]
    images = draw(
        network, schedule, labels_NA[mine], mine, sampling, shape=shape, seed=seed, device=world.device
    )
    if world.size == 1:
        return images
    # What is shown travels, however many ranks there are: those that draw an image again give nothing.
    first = min(world.rank * share, count)
    whole = torch.zeros((count, *images.shape[1:]), dtype=torch.uint8)
    own = whole[first : first + share]
    own.copy_(torch.from_numpy(images[: len(own)]))
    return sum_over_ranks(whole.to(world.device)).cpu().numpy()


def choose_labels(schema: Sequence[Attribute], wanted: dict[str, int], seed: int, count: int) -> Tensor:
    """Labels [count, A]: ``wanted`` fixed, the rest uniform by (seed, cell)."""
    labels_BA = randomness.labels(seed, range(count), [a.variants for a in schema])
    for column, attribute in enumerate(schema):
        if attribute.name in wanted:
            labels_BA[:, column] = wanted[attribute.name]
    return labels_BA
