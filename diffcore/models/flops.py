"""Floating-point work of a training step, and what the device could do at most."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffcore import models
from diffcore.config.models import Model
from diffcore.config.tree import Optimizer
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.orthogonal.newton_schulz import flops
from shards.schema import Attribute

# Dense peaks in TFLOP/s, from the maker's data sheets: part of the device's name, bf16 and fp16, fp32.
PEAKS = [
    ("H200", 989.0, 67.0),
    ("H100 PCIe", 756.0, 51.0),
    ("H100", 989.0, 67.0),
    ("A100", 312.0, 19.5),
    ("A10G", 70.0, 35.0),
    ("A10", 125.0, 31.2),
    ("L40S", 362.0, 91.6),
    ("L4", 121.0, 30.3),
    ("V100", 125.0, 15.7),
    ("T4", 65.0, 8.1),
]


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
    name = torch.cuda.get_device_name(device)
    for part, half, single in PEAKS:
        if part in name:
            return (single if precision == "fp32" else half) * 1e12
    return None
