"""Every network of configs/: its size, and that it learns what its labels say.

A step of each at full size, and training an eighth as wide: tests/integration/test_configs.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.config import tree as config
from diffcore.config.models import AvatarModel, DdpmModel, DiffusersModel, Model
from diffcore.engine.optimizers import build_optimizer
from shards.schema import CARTOON_SET, UNKNOWN, Attribute

CONFIGS = REPOSITORY / "configs"
SCHEMAS = {"cifar10": (Attribute("class", 10),), "landscapes": ()}
SIZES = {
    "demo": 1_749_718,
    "demo-adamw": 2_121_292,
    "small": 3_675_350,
    "avatar": 70_126_595,
    "avatar-adamw": 76_902_915,
    "avatar-heads1": 76_902_915,
    "avatar-integer": 68_344_323,
    "avatar-original": 86_278_659,
    "avatar-tau2": 86_278_659,
    "avatar-unconditional": 62_007_811,
    "ddpm-cifar10": 23_335_299,
    "ddpm-landscapes": 23_332_739,
    "diffusers-32": 188_511_363,
    "diffusers-16": 180_483_203,
    "diffusers-8": 180_483_203,
}


def schema_of(c: config.Config) -> tuple[Attribute, ...]:
    return SCHEMAS.get(c.data.path.name, CARTOON_SET)


def batch(schema: tuple[Attribute, ...], size: int, count: int = 2) -> tuple[torch.Tensor, ...]:
    labels_BA = torch.zeros(count, len(schema)).long()
    for column, attribute in enumerate(schema):
        labels_BA[:, column] = torch.arange(count) % attribute.variants
    return torch.randn(count, 3, size, size), torch.arange(count), labels_BA, torch.ones(count).bool()


@pytest.mark.parametrize("name", SIZES)
def test_a_full_size_network_has_the_size_it_says(name: str) -> None:
    c = configure.load(CONFIGS / f"{name}.yaml")
    with torch.device("meta"):
        network = models.build(c.model, schema_of(c), 64)
    assert sum(p.numel() for p in network.parameters()) == SIZES[name]
    assert f"{SIZES[name]:,} parameters" in (CONFIGS / f"{name}.yaml").read_text()


TINY = {
    "block_out_channels": (32, 32),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
    "tau_tokens": 4,
}
# An eighth of the width, or the least that the architecture allows.
SMALL: dict[str, Model] = {
    "avatar": AvatarModel(channels=(16, 32, 64, 128), heads=4, tau_tokens=2),
    "avatar-options": AvatarModel(
        channels=(16, 32, 64),
        patch=2,
        head="refine",
        head_channels=8,
        blocks=(1, 1, 1),
        attention_levels=(1, 2),
        self_attention_levels=(2,),
        tau="attribute",
        tau_tokens=1,
        label_gain=10.0,
        label_maps=4,
    ),
    "ddpm": DdpmModel(kind="ddpm", width=8),
    "diffusers": DiffusersModel(kind="diffusers", **TINY),
    "diffusers-self": DiffusersModel(kind="diffusers", **TINY, only_cross_attention=False),
}


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return models.build(SMALL[name], CARTOON_SET, 16)


@pytest.mark.parametrize("name", SMALL)
def test_a_network_takes_images_of_any_size_that_divides(name: str) -> None:
    """One after the other, as in a run's stages: nothing of its weights is of one size."""
    network, divisor = small(name), SMALL[name].divisor
    for size in (divisor, 2 * divisor, 3 * divisor):
        given = batch(CARTOON_SET, size)
        network.zero_grad()
        output = network(*given)
        assert output.shape == given[0].shape
        (output - given[0]).square().mean().backward()
        # A branch that begins with zeros hides what is before it; the others learn.
        assert sum(p.grad is not None and bool(p.grad.any()) for p in network.parameters()) > 1


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_small_network_learns_what_its_labels_say(name: str) -> None:
    network = small(name)
    x, t_B, labels_BA, keep_B = batch(CARTOON_SET, 16, count=4)
    wanted = torch.linspace(-1, 1, 4).view(4, 1, 1, 1).expand(4, 3, 16, 16)
    x = x[:1].expand(4, -1, -1, -1)  # the same picture and time for all: only the labels tell them apart
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        loss = (network(x, t_B * 0, labels_BA, keep_B) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("name", SMALL)
def test_a_dropped_condition_hides_the_labels(name: str) -> None:
    network = small(name)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t_B, labels_BA, _ = batch(CARTOON_SET, 16)
    dropped = torch.zeros(2).bool()
    with torch.no_grad():
        torch.testing.assert_close(
            network(x, t_B, labels_BA, dropped), network(x, t_B, labels_BA * 0, dropped)
        )
        apart = network(x, t_B, labels_BA, ~dropped) - network(x, t_B, labels_BA * 0, ~dropped)
    assert apart[1].abs().max() > 1e-5


@pytest.mark.parametrize("encoding", ["one_hot", "integer"])
@pytest.mark.parametrize("name", SMALL)
def test_an_unknown_label_is_dropped_alone(name: str, encoding: str) -> None:
    """All unknown is a dropped condition; one unknown hides its own variant, leaves the others, and learns
    nothing for its attribute."""
    torch.manual_seed(0)
    config = SMALL[name]
    if "attributes" in type(config).model_fields:
        config = config.model_copy(update={"attributes": encoding})
    network = models.build(config, CARTOON_SET, 16)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t_B, labels_BA, _ = batch(CARTOON_SET, 16)
    keep, some = torch.ones(2).bool(), labels_BA.clone()
    some[:, 3] = UNKNOWN
    with torch.no_grad():
        nothing = network(x, t_B, torch.full_like(labels_BA, UNKNOWN), keep)
        torch.testing.assert_close(nothing, network(x, t_B, labels_BA, ~keep))
        assert (network(x, t_B, some, keep) - nothing).abs().max() > 1e-5
        assert (network(x, t_B, some, keep) - network(x, t_B, labels_BA, keep)).abs().max() > 1e-6
    if name == "ddpm":
        network(x, t_B, some, keep).square().mean().backward()
        grads = [embedding.weight.grad.abs().max() for embedding in network.labels]
        assert grads[3] == 0 and grads[2] > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_unknown_labels_need_no_shapes_of_their_own(name: str) -> None:
    """One graph takes known and unknown labels: nothing in it asks which they are."""
    network = small(name)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(network, backend=backend, dynamic=False, fullgraph=True)
    x, t_B, labels_BA, keep_B = batch(CARTOON_SET, 16)
    some = labels_BA.clone()
    some[:, ::2] = UNKNOWN
    with torch.no_grad():
        for labels in (labels_BA, some):
            torch.testing.assert_close(
                compiled(x, t_B, labels, keep_B), network(x, t_B, labels, keep_B), rtol=0, atol=0
            )
    assert len(graphs) == 1
    torch.compiler.reset()


def plain_attention(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    weights = (query @ keys.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    return weights @ values


@pytest.mark.parametrize("name", ["avatar", "avatar-options", "ddpm"])
def test_fast_forms_give_the_plain_forms_numbers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(torch, "channels_last", torch.contiguous_format)
            monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", plain_attention)
        network = small(name)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.1)
        torch.manual_seed(1)
        loss = network(*batch(CARTOON_SET, 16)).square().mean()
        loss.backward()
        found.append((loss.detach(), [p.grad for p in network.parameters()]))
    (fast_loss, fast_gradients), (plain_loss, plain_gradients) = found
    torch.testing.assert_close(fast_loss, plain_loss, rtol=1e-5, atol=0)
    for a, b in zip(fast_gradients, plain_gradients, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm() + 1e-7


def test_ddpm_attention_is_torchs_multihead_attention() -> None:
    from diffcore.models.ddpm import SelfAttention

    torch.manual_seed(0)
    ours, theirs = SelfAttention(32, heads=4), nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = ours.in_proj.weight.data, ours.in_proj.bias.data
    theirs.out_proj.load_state_dict(ours.out_proj.state_dict())
    x_BCHW = torch.randn(2, 32, 4, 4)
    x_BLC = x_BCHW.flatten(2).transpose(1, 2)
    normed = ours.norm(x_BLC)
    read = x_BLC + theirs(normed, normed, normed)[0]
    expected = (read + ours.feed_forward(read)).transpose(1, 2).unflatten(2, (4, 4))
    torch.testing.assert_close(ours(x_BCHW), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_the_fused_optimizer_is_the_plain_one(kind: str) -> None:
    c = configure.load(CONFIGS / "demo.yaml", {"optimizer": {"kind": kind, "weight_decay": 0.1}})
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    ours, theirs = (nn.Linear(33, 7) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    optimizers = [
        build_optimizer(c, ours),
        plain(theirs.parameters(), lr=c.optimizer.lr, weight_decay=0.1, foreach=False, fused=False),
    ]
    for step in range(5):
        x = torch.randn(4, 33, generator=torch.Generator().manual_seed(step))
        for network, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.bias, theirs.bias, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", ["avatar", "ddpm", "diffusers"])
def test_a_condition_needs_labels(name: str) -> None:
    with pytest.raises(InputError, match="no labels"):
        models.build(SMALL[name], (), 16)


def test_kinds_are_named() -> None:
    with pytest.raises(InputError, match=r"model\.kind must be one of avatar, ddpm, diffusers"):
        configure.load(CONFIGS / "demo.yaml", {"model": {"kind": "unet"}})
