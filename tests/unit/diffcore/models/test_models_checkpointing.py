"""Activation checkpointing: the plain network's numbers, and fewer bytes held from forward to backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from diffcore import models
from diffcore.config.models import AvatarModel, DdpmModel, DiffusersModel, Model
from diffcore.models.activation_checkpointing import checkpoint_blocks
from shards.schema import CARTOON_SET, UNKNOWN
from tests.unit.diffcore.models.test_models import TINY, batch

pytestmark = pytest.mark.numeric

SMALL: dict[str, Model] = {
    "avatar": AvatarModel(channels=(16, 32), attention_levels=(1,), tau_tokens=2),
    "avatar-options": AvatarModel(
        channels=(16, 32),
        patch=2,
        head="refine",
        attention_levels=(1,),
        self_attention_levels=(1,),
        tau="attribute",
        tau_tokens=1,
    ),
    "ddpm": DdpmModel(kind="ddpm", width=8),
    "diffusers": DiffusersModel(kind="diffusers", **TINY),
}


def learned(name: str, mode: str, hooked: bool) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a network without zeroed branches."""
    torch.manual_seed(0)
    network = models.build(SMALL[name], CARTOON_SET, 16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    checkpoint_blocks(network, mode, hooked=hooked)
    x, t_B, labels_BA, keep_B = batch(CARTOON_SET, 16)
    labels_BA[0, ::2] = UNKNOWN
    loss = network(x, t_B, labels_BA, keep_B).square().mean()
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", SMALL)
def test_the_numbers_are_the_plain_networks(name: str) -> None:
    loss, gradients = learned(name, "none", False)
    for mode, hooked in itertools.product(("selective", "full"), (False, True)):
        loss_now, gradients_now = learned(name, mode, hooked)
        assert torch.equal(loss, loss_now) and gradients.keys() == gradients_now.keys()  # names too
        assert all(torch.equal(g, gradients_now[n]) for n, g in gradients.items())  # bit for bit


def held(name: str, mode: str) -> tuple[int, int]:
    """Bytes after forward without the weights', and of the peak; counted by torch without computing."""
    with FakeTensorMode():
        network = models.build(SMALL[name], CARTOON_SET, 16)
        checkpoint_blocks(network, mode)
        weights = sum(p.nbytes for p in network.parameters())
        tracker = MemTracker()
        tracker.track_external(network)
        with tracker:
            loss = network(*batch(CARTOON_SET, 16, 8)).square().mean()
            after = tracker.get_tracker_snapshot("current")[torch.device("cpu")]["Total"]
            loss.backward()
        return after - weights, tracker.get_tracker_snapshot("peak")[torch.device("cpu")]["Total"] - weights


@pytest.mark.slow
def test_fewer_bytes_are_held() -> None:
    plain, selective, full = (held("avatar", mode) for mode in ("none", "selective", "full"))
    assert selective[0] < 0.75 * plain[0] and full[0] < 0.5 * plain[0]
    assert full[1] < selective[1] < plain[1]
