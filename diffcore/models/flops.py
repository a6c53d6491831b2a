"""Floating-point work of a training step, and what the device could do at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffbase.machine import cards
from diffcore import models
from diffcore.config.models import Model
from diffcore.config.tree import Optimizer
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.orthogonal.newton_schulz import flops
from shards.schema import Attribute


def training_flops(model: Model, schema: Sequence[Attribute], size: int) -> int:
    """FLOPs of one image's forward and backward pass, two per multiply-add, counted on tensors without data.

    Backward counts twice the forward: one product for the input's gradient and one for the weight's.
    """
    with FakeTensorMode():
        network = models.build(model, schema, size)
        inputs = models.example_batch(1, schema, size)
        # torch does not count the CPU's fused attention: as two matrix products it does.
        plain = sdpa_kernel(SDPBackend.MATH)
        with plain, FlopCounterMode(display=False) as counter, torch.no_grad():
            network(*inputs)
    return 3 * int(counter.get_total_flops())


def optimizer_flops(model: Model, optimizer: Optimizer, schema: Sequence[Attribute], size: int) -> int:
    """FLOPs of the matrix products of one optimizer step, on all ranks together: Muon's Newton-Schulz.

    Once a step, whatever the batch is; Adam's are none. What is done for each element is not counted.
    """
    if optimizer.kind != "muon":
        return 0
    with FakeTensorMode():
        network = models.build(model, schema, size)
    return sum(flops(rows, columns, optimizer.ns_steps) for rows, columns in matrices(network).values())


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s that the device can do at most; None where its data sheet is not known here, as for CPUs."""
    if device.type != "cuda":
        return None
    card = cards.find(torch.cuda.get_device_name(device))
    return (card.fp32 if precision == "fp32" else card.half) * 1e12 if card else None
