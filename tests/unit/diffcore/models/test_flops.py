"""The work of a training step, beside a count by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from diffcore import models
from diffcore.config import configure
from diffcore.config.models import DdpmModel
from diffcore.config.tree import Optimizer
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.models.ddpm import DdpmUNet
from diffcore.models.flops import optimizer_flops, training_flops
from shards.schema import CARTOON_SET


def test_attention_is_counted() -> None:
    """Twice the pixels: 16 times the products of the attention's pairs, 4 times all others."""
    model = DdpmModel(kind="ddpm", width=64, labels="none")
    small, large = (training_flops(model, (), size) for size in (32, 64))
    # Attention after every down and up block: resolution / size and channels of each.
    places = [(2, 128), (4, 256), (8, 256), (4, 128), (2, 64), (1, 64)]
    pairs = sum(3 * 2 * 2 * (32 // part) ** 4 * channels for part, channels in places)
    other = small - pairs
    embeddings = 3 * 2 * 256 * (128 + 256 + 256 + 128 + 64 + 64)  # of the time: the same at every size
    assert large == 16 * pairs + 4 * (other - embeddings) + embeddings
    assert abs(large / 56.2e9 - 1) < 0.01  # system 3's UNet at 64 x 64


@pytest.mark.parametrize("name", ["demo", "avatar"])
def test_forward_and_backward_are_what_torch_counts_of_them(name: str) -> None:
    """But for the gradients of the network's inputs, which nobody needs."""
    model = configure.load(Path(f"{name}.yaml")).model
    counted = training_flops(model, CARTOON_SET, 64)
    with FakeTensorMode():
        network, inputs = models.build(model, CARTOON_SET, 64), models.example_batch(1, CARTOON_SET, 64)
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as torchs:
            network(*inputs).sum().backward()
    assert 1 <= counted / torchs.get_total_flops() < 1.01


def test_an_optimizers_products_are_counted_once_a_step() -> None:
    """One more Newton-Schulz iteration is four products of the smaller side of each matrix, with itself."""
    model = DdpmModel(kind="ddpm", width=16, labels="none")
    four, five = (
        optimizer_flops(model, Optimizer(kind="muon", ns_steps=n), (), size)
        for n, size in ((4, 32), (5, 64))  # of the images it is none
    )
    with FakeTensorMode():
        shapes = matrices(DdpmUNet(model, ())).values()
    assert five - four == sum(4 * 2 * min(shape) ** 3 for shape in shapes) > 0
    assert optimizer_flops(model, Optimizer(kind="adamw"), (), 32) == 0
