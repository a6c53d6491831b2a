"""engine.channels_last: what convolutions are given, and that the numbers and the parameters stay."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.config.tree import Engine
from shards.schema import CARTOON_SET

NETWORKS: dict[str, dict[str, Any]] = {
    "demo": {},
    "ddpm-cifar10": {"width": 16, "embedding": 32},
    "diffusers-32": {
        "block_out_channels": [32, 64], "attention_head_dim": 4, "cross_attention_dim": 32, "tau_tokens": 4,
        "layers_per_block": 1,
    },
}  # fmt: skip
"""Configs, and what makes their networks small."""


def network(name: str) -> nn.Module:
    c = configure.load(REPOSITORY / "configs" / f"{name}.yaml", {"model": NETWORKS[name]})
    torch.manual_seed(0)
    built = models.build(c.model, CARTOON_SET, 16)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.05)
    return built


def outcome(net: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients of one batch."""
    source = torch.Generator().manual_seed(1)
    x_BCHW = torch.randn(2, 3, 16, 16, generator=source)
    labels_BA = torch.zeros(2, len(CARTOON_SET), dtype=torch.int64)
    output = net(x_BCHW, torch.tensor([3, 50]), labels_BA, torch.tensor([True, False]))
    output.square().mean().backward()
    return output.detach(), {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("checkpointing", ["none", "selective", "full"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_changes_the_format_and_not_the_numbers(name: str, checkpointing: str) -> None:
    plain = network(name)
    other = models.prepare(
        copy.deepcopy(plain), Engine.model_validate({"channels_last": True, "checkpointing": checkpointing})
    )
    output, gradients = outcome(plain)
    found, their_gradients = outcome(other)
    # Sums in another order: a few units in the last place, grown over the layers.
    assert (found - output).norm() <= 1e-5 * output.norm()
    assert their_gradients.keys() == gradients.keys()
    whole = torch.cat([g.flatten() for g in gradients.values()])
    theirs = torch.cat([g.flatten() for g in their_gradients.values()])
    assert (theirs - whole).norm() <= 1e-5 * whole.norm()
    # As DeepSpeed and checkpoints want them.
    assert all(p.is_contiguous() and their_gradients[n].is_contiguous() for n, p in other.named_parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convolution_computes_in_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also those that get contiguous images: the weight's format decides."""
    seen: list[tuple[Tensor, Tensor]] = []
    conv2d = nn.functional.conv2d

    def watched(x_BCHW: Tensor, weight_OCHW: Tensor, *rest: Any) -> Tensor:
        output = conv2d(x_BCHW, weight_OCHW, *rest)
        seen.append((weight_OCHW, output))
        return output

    monkeypatch.setattr(nn.functional, "conv2d", watched)
    net = network(name)
    count = sum(isinstance(module, nn.Conv2d) for module in net.modules())
    outcome(models.prepare(net, Engine(channels_last=True)))
    assert len(seen) == count
    for weight_OCHW, output_BCHW in seen:
        assert weight_OCHW.stride()[1] == 1 and output_BCHW.stride()[1] == 1
    seen.clear()
    outcome(network(name))
    assert not any(weight_OCHW.stride()[1] == 1 for weight_OCHW, _ in seen if weight_OCHW.shape[2] > 1)
