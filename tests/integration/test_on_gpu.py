"""On a GPU, where there is one: the demo's recipe draws the CPU's levels and steps as the CPU does."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.diffusion.randomness import Draws
from diffcore.diffusion.timesteps import levels_of
from diffcore.engine.orthogonal.matrices import matrices
from diffcore.engine.orthogonal.muon import Muon, units
from diffcore.engine.orthogonal.orthogonalization import Orthogonalization
from diffcore.engine.partitions import Place
from diffcore.engine.ranks import World
from shards.schema import CARTOON_SET

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
CPU, GPU = torch.device("cpu"), torch.device("cuda")
CONFIG = REPOSITORY / "configs" / "demo.yaml"
BATCH, SIZE = 16, 64


def drawn(device: torch.device) -> Draws:
    c = configure.load(CONFIG, {})
    positions_B = torch.arange(1000, 1000 + 64 * BATCH, device=device)
    return Draws.on_device(
        positions_B,
        seed=7,
        timesteps=c.diffusion.timesteps,
        label_dropout=c.diffusion.label_dropout,
        shape=(3, 8, 8),
        levels=levels_of(c.diffusion, 7, BATCH),
    )


def test_levels_and_drops_are_the_cpus_to_the_bit() -> None:
    """Stratified and log-normal; the noise to some units in the last place."""
    here, there = drawn(CPU), drawn(GPU).to(CPU)
    assert torch.equal(here.t_B, there.t_B)
    assert torch.equal(here.keep_B, there.keep_B)
    torch.testing.assert_close(here.eps_BCHW, there.eps_BCHW, rtol=2e-6, atol=2e-6)


def gradients(net: nn.Module, device: torch.device) -> list[Tensor]:
    source = torch.Generator().manual_seed(1)
    labels = [torch.randint(a.variants, (BATCH,), generator=source) for a in CARTOON_SET]
    x = torch.randn(BATCH, 3, SIZE, SIZE, generator=source).to(device)
    t_B = torch.randint(1000, (BATCH,), generator=source).to(device)
    keep_B = (torch.rand(BATCH, generator=source) > 0.1).to(device)
    net.zero_grad(set_to_none=True)
    (net(x, t_B, torch.stack(labels, 1).to(device), keep_B) - x).square().mean().backward()
    return [p.grad.detach().clone() for p in net.parameters() if p.grad is not None]


def network() -> nn.Module:
    torch.manual_seed(0)
    net = models.build(configure.load(CONFIG, {}).model, CARTOON_SET, SIZE)
    with torch.no_grad():  # some begin as zeros, whose gradient is rounding alone
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))
    return net


def test_a_backward_pass_is_the_same_twice_and_near_the_cpus() -> None:
    """Label maps, tables and the refining head among it, under ``train.deterministic``."""
    net = network()
    exact = gradients(net, CPU)
    net.to(GPU)
    tf32, deterministic = torch.backends.cudnn.allow_tf32, torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.allow_tf32 = False
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(net, GPU), gradients(net, GPU)
    finally:
        torch.backends.cudnn.allow_tf32 = tf32
        torch.use_deterministic_algorithms(deterministic)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    here, there = (torch.cat([g.flatten().cpu() for g in found]) for found in (exact, first))
    assert float((here - there).norm() / here.norm()) < 1e-4


def bound(net: nn.Module, device: torch.device, together: bool) -> Muon:
    muon = Muon(
        net.parameters(), ns_steps=5, lr=4e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, momentum=0.95
    )
    named = list(net.named_parameters())
    places = [Place(name, 0, p.numel(), shard, 0) for shard, (name, p) in enumerate(named)]
    [unit] = units([p for _, p in named], places, matrices(net), None, World(0, 1, 0, device), 5)
    o = unit.orthogonalization
    muon.bind([replace(unit, orthogonalization=Orthogonalization(o.matrices, o.world, o.steps, together))])
    return muon


def test_muon_steps_as_on_the_cpu_and_leaves_steps_out_that_the_gpu_says() -> None:
    """A GPU orthogonalizes in bf16: as far from fp32 as a CPU is that does the same."""
    start = network()
    given = gradients(start, CPU)
    exact, control, there = (copy.deepcopy(start).to(device) for device in (CPU, CPU, GPU))
    muons = [bound(exact, CPU, False), bound(control, CPU, True), bound(there, GPU, True)]
    for _ in range(3):
        for net, muon in zip((exact, control, there), muons, strict=True):
            for p, g in zip(net.parameters(), given, strict=True):
                p.grad = g.to(p.device, copy=True)
            muon.found_inf = torch.zeros((), device=p.device)
            muon.step()
    for first, *found in zip(*(net.parameters() for net in (start, exact, control, there)), strict=True):
        e, c, t = (p.detach().to(CPU) for p in found)
        assert not torch.equal(e, first)
        assert (t - e).norm() <= 2 * (c - e).norm() + 1e-3 * (e - first).detach().norm()
    before = [p.detach().clone() for p in there.parameters()]
    for q in there.parameters():
        q.grad = torch.full_like(q, torch.inf)
    muons[-1].found_inf = torch.ones((), device=GPU)
    muons[-1].step()
    assert all(torch.equal(a, b) for a, b in zip(before, there.parameters(), strict=True))
