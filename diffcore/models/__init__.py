"""Denoising networks: one file per architecture, chosen by ``model.kind`` from a plain dict.

What a network takes and gives: ``models.contract``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from diffbase.cli import InputError
from diffbase.extras import extra
from diffcore.config.models import DiffusersModel, Model
from diffcore.config.tree import Engine
from diffcore.models.activation_checkpointing import checkpoint_blocks
from diffcore.models.avatar import AvatarUNet
from diffcore.models.channels_last import use_channels_last
from diffcore.models.compiling import compile_network, settled
from diffcore.models.contract import Inputs, Network, example_batch
from diffcore.models.ddpm import DdpmUNet
from shards.schema import Attribute


def _diffusers(config: DiffusersModel, schema: Sequence[Attribute]) -> nn.Module:
    with extra("diffusers", "model.kind diffusers"):
        from diffcore.models.diffusers_unet import DiffusersUNet  # a second of imports that others spare

    return DiffusersUNet(config, schema)


__all__ = ["BUILDERS", "Inputs", "Network", "build", "check", "example_batch", "prepare", "settled"]

BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "avatar": AvatarUNet,
    "ddpm": DdpmUNet,
    "diffusers": _diffusers,
}


def check(config: Model, schema: Sequence[Attribute], size: int) -> None:
    """InputError if the network of ``config`` cannot halve images of ``size`` pixels as often as it must, or
    wants labels and there are none."""
    if size % config.divisor:
        raise InputError(
            f"data: images of {size} pixels do not go through this model.{config.kind} network; "
            f"allowed: multiples of {config.divisor}"
        )
    if config.conditional and not schema:
        raise InputError("data: these shards have no labels: set model.attributes or model.labels to none")


def build(config: Model, schema: Sequence[Attribute], size: int) -> nn.Module:
    """The network of ``config`` for labels of ``schema`` and images of ``size`` pixels. InputError as of
    ``check``."""
    check(config, schema, size)
    return BUILDERS[config.kind](config, schema)


def prepare(network: nn.Module, engine: Engine) -> nn.Module:
    """``network`` as ``engine`` wants it trained: memory format, activation checkpointing and torch.compile,
    in place.

    Parameters keep their names, and the numbers are those of the plain network (compiled, or in another
    memory format, but for the last bits). What ``engine.compile`` auto stands for is ``settled`` before.
    """
    assert engine.compile != "auto"
    if engine.channels_last:
        use_channels_last(network)
    checkpoint_blocks(network, engine.checkpointing, hooked=engine.zero == 3)
    if engine.compile == "on":
        compile_network(network)
    return network
