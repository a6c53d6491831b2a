"""A network that is built in its share has the weights of one that is built whole, bit for bit."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffbase.files import REPOSITORY
from diffcore import models
from diffcore.config import configure
from diffcore.config.models import AvatarModel
from diffcore.config.tree import Config
from diffcore.engine import construction
from diffcore.engine.engine import Engine, forget_earlier_engines
from diffcore.engine.ranks import World
from shards.schema import CARTOON_SET
from tests.support.allocations import peak_of
from tests.support.ranks import run_ranks
from tests.unit.diffcore.models.test_models import SMALL

Make = Callable[[], nn.Module]


def built(make: Make) -> tuple[nn.Module, dict[str, Tensor]]:
    """The network by ``construction``'s two passes, and each parameter as it was when it was shared out."""
    written, _ = construction._plan(make)
    values: dict[nn.Parameter, Tensor] = {}

    def share_out(parameter: nn.Parameter) -> None:
        values[parameter] = parameter.data.clone()
        parameter.data = torch.empty(0)

    with construction._Sharing(written, share_out) as second:
        network = make()
    second.end()
    weights = {name: values.get(parameter, parameter.data) for name, parameter in network.named_parameters()}
    return network, weights


def same_as_whole(make: Make) -> None:
    torch.manual_seed(3)
    whole = make()
    after = torch.get_rng_state()
    torch.manual_seed(3)
    network, weights = built(make)
    assert torch.equal(torch.get_rng_state(), after)
    for ours, theirs in (
        (weights, whole.named_parameters()),
        (dict(network.named_buffers()), whole.named_buffers()),
    ):
        expected = dict(theirs)
        assert ours.keys() == expected.keys()
        for name, tensor in ours.items():
            assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("name", SMALL)
def test_every_network_is_the_same(name: str) -> None:
    same_as_whole(lambda: models.build(SMALL[name], CARTOON_SET, 16))


def _row(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight[0].fill_(2.0)


def _late_view(layer: nn.Linear) -> None:
    with torch.no_grad():
        row = layer.weight[1]
        layer.weight.zero_()
        layer.bias.normal_()
        row.uniform_()


def _from_itself(layer: nn.Linear) -> None:
    layer.weight.data.mul_(layer.weight.detach().abs().sum())


def _copied(layer: nn.Linear) -> None:
    with torch.no_grad():
        layer.weight.copy_(torch.randn(layer.weight.shape))
        layer.bias.copy_(layer.weight[0, :1].expand_as(layer.bias))


def _replaced(layer: nn.Linear) -> None:
    layer.weight.data = torch.randn_like(layer.weight)
    nn.init.ones_(layer.bias)


def _new(layer: nn.Linear) -> None:
    layer.weight = nn.Parameter(torch.randn(3, 2).T)


CHANGES: dict[str, Callable[[nn.Linear], object]] = {
    "zeros": lambda layer: nn.init.zeros_(layer.weight),
    "normal": lambda layer: nn.init.normal_(layer.bias),
    "truncated": lambda layer: nn.init.trunc_normal_(layer.weight),
    "orthogonal": lambda layer: nn.init.orthogonal_(layer.weight),
    "by data": lambda layer: layer.weight.data.normal_(0, 0.02),
    "reset": lambda layer: layer.reset_parameters(),
    "row": _row,
    "late view": _late_view,
    "from itself": _from_itself,
    "copied": _copied,
    "replaced": _replaced,
    "new": _new,
}
"""What a parent may do to a layer that is there already."""


@given(
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(sorted(CHANGES))), max_size=6),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_whatever_a_parent_does_to_its_layers(todo: list[tuple[int, str]], tied: bool, dropped: bool) -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(2, 3) for _ in range(3))
            self.scale = nn.Parameter(torch.rand(4))
            self.odd = nn.Parameter(torch.randn(3, 4).T[1:])
            if dropped:
                nn.Linear(5, 5).reset_parameters()
            for number, change in todo:
                CHANGES[change](self.layers[number])  # type: ignore[arg-type]
            self.norm = nn.GroupNorm(2, 4)
            if tied:
                self.norm.weight = self.scale

    same_as_whole(Network)


def test_one_parameter_at_a_time_has_memory() -> None:
    config = AvatarModel(kind="avatar", channels=(32, 64), attention_levels=(1,), heads=2, tau_tokens=4)
    make: Make = lambda: models.build(config, CARTOON_SET, 64)  # noqa: E731
    whole, control = peak_of(make)
    sizes = [parameter.numel() * 4 for parameter in whole.parameters()]

    def shared() -> nn.Module:
        written, _ = construction._plan(make)
        with construction._Sharing(written, lambda parameter: None) as second:
            network = make()
        second.end()
        return network

    _, peak = peak_of(shared)
    small = 64 << 10  # buffers, the generator's state
    assert peak <= max(sizes) + small < sum(sizes) <= control


# --- with DeepSpeed ---


def _config(world: int, precision: str) -> Config:
    model = {"kind": "avatar", "channels": [32, 64], "attention_levels": [1], "heads": 2, "tau_tokens": 4}
    engine = {"zero": 3, "precision": precision, "threads": 1}
    batch = {"micro": 2, "size": 2 * world}
    return configure.load(
        REPOSITORY / "configs" / "avatar-adamw.yaml", {"model": model, "engine": engine, "batch": batch}
    )


def compare(rank: int, size: int, precision: str, folder: Path) -> None:
    """One process: what both ways give, written down as lines of text."""
    os.environ |= {
        "DS_ACCELERATOR": "cpu",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
    }
    import deepspeed

    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
    )
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    world = World(rank, size, rank, torch.device("cpu"))
    config = _config(size, precision)
    make: Make = lambda: models.build(config.model, CARTOON_SET, 16)  # noqa: E731
    ways: dict[str, Make] = {"share": lambda: construction.build(make, config, world), "whole": make}
    peaks, weights, trained = {}, {}, {}
    for way, build in ways.items():
        forget_earlier_engines()
        torch.manual_seed(5)
        network, peaks[way] = peak_of(build)
        engine = Engine(network, config, world)
        weights[way] = {name: tensor.clone() for name, tensor in engine.full_weights()}
        inputs = models.example_batch(2, CARTOON_SET, 16)
        torch.manual_seed(rank)
        for _ in range(2):
            loss = engine(torch.randn_like(inputs.x_BCHW), *inputs[1:]).square().mean()
            engine.backward(loss)
            engine.step(1e-3)
        trained[way] = {name: tensor.clone() for name, tensor in engine.full_weights()}
        engine._engine.destroy()
    torch.manual_seed(5)
    network = make()
    plain = {name: parameter.to(engine.dtype).float() for name, parameter in network.named_parameters()}
    w = engine.dtype.itemsize  # a parameter is drawn in fp32, and there twice while it is cast
    share = w * sum(-(-tensor.numel() // size) for tensor in plain.values())
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in network.modules())
    most, total = share + (4 if w == 4 else 6) * largest, 4 * sum(t.numel() for t in plain.values())
    said = {
        "ZeRO-0's weights": all(torch.equal(weights["share"][name], plain[name]) for name in plain),
        "the old way's": all(torch.equal(weights["share"][n], weights["whole"][n]) for n in plain),
        "and after steps": all(torch.equal(trained["share"][n], trained["whole"][n]) for n in plain),
        "which have moved": not torch.equal(trained["share"]["stem.1.weight"], plain["stem.1.weight"]),
        f"a peak of {peaks['share']}, not {most}": peaks["share"] <= most,
        f"the old way's of {peaks['whole']} above": peaks["whole"] >= total > most,
    }
    (folder / f"{rank}").write_text("\n".join(line for line, right in said.items() if not right) or "right")
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
@pytest.mark.slow
@pytest.mark.parametrize(("size", "precision"), [(1, "bf16"), (2, "fp32")])
def test_deepspeed_starts_from_the_same_weights_in_the_memory_of_a_share(
    size: int, precision: str, tmp_path: Path
) -> None:
    run_ranks(compare, range(size), size, precision, tmp_path, seconds=150)
    said = [(tmp_path / str(rank)).read_text() for rank in range(size) if (tmp_path / str(rank)).exists()]
    assert said == ["right"] * size
