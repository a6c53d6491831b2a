"""Denoising networks: one file an architecture, chosen by ``model.kind`` from a plain dict.

Every network has one signature, so that training, sampling and the memory anatomy treat all alike:
``network(x_BCHW, t_B, labels_BA, keep_B) -> prediction_BCHW`` with images in [-1, 1], integer timesteps,
integer labels in the schema's order and ``keep`` False where the condition is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from diffcore.config import AvatarModel
from diffcore.models.avatar import AvatarUNet
from shards.attributes import Attribute
from shards.cli import InputError

BUILDERS: dict[str, Callable[[AvatarModel, Sequence[Attribute]], nn.Module]] = {"avatar": AvatarUNet}


def build(config: AvatarModel, schema: Sequence[Attribute], size: int) -> nn.Module:
    """The network of ``config`` for labels of ``schema`` and images of ``size`` pixels.

    InputError if the ladder does not divide the image.
    """
    step = config.patch * 2 ** (len(config.channels) - 1)
    if size % step:
        raise InputError(
            f"data: images of {size} pixels do not go through model.channels with {len(config.channels)} "
            f"levels and model.patch {config.patch}; allowed: multiples of {step}"
        )
    return BUILDERS[config.kind](config, schema)
