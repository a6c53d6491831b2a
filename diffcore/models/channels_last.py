"""A network in the memory format channels_last (NHWC), which tensor cores and oneDNN compute in."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn


def use_channels_last(network: nn.Module) -> None:
    """Have ``network`` take images and 2-D convolutions' weights in channels_last, in place.

    A forward makes a copy of each such weight in that format, which lives until its backward. The parameters
    stay as they are: DeepSpeed keeps them in flat buffers, by element order, and so do checkpoints.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            plain = module._conv_forward
            module._conv_forward = functools.partial(_convolved, plain)  # type: ignore[method-assign]
    network.forward = functools.partial(_forward, network.forward)


def _convolved(plain: Any, x_BCHW: Tensor, weight_OCHW: Tensor, bias_O: Tensor | None) -> Tensor:
    # Not contiguous(): that leaves 1 x 1 weights with strides that ask for no format.
    output: Tensor = plain(x_BCHW, weight_OCHW.to(memory_format=torch.channels_last), bias_O)
    return output


def _forward(plain: Any, x_BCHW: Tensor, *rest: Tensor) -> Tensor:
    output: Tensor = plain(x_BCHW.to(memory_format=torch.channels_last), *rest)
    return output
