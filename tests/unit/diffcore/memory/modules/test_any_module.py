"""Plans of any nn.Module: closed forms, what a network may be made of, and what cannot be planned."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from diffbase.cli import InputError
from diffcore.memory import plan
from diffcore.memory.calibration import ASSUMED
from diffcore.memory.commands import plan as command
from diffcore.memory.modules import answers
from diffcore.memory.modules.job import STRATEGIES
from diffcore.memory.modules.optimizers import BLOCK, CODES, LEAST
from diffcore.memory.modules.plan import job_of, loss_of
from diffcore.memory.planning.plan import Plan

WIDE = 24


def mlp(*widths: int) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        parts: list[nn.Module] = []
        for a, b in pairwise(widths):
            parts += [nn.Linear(a, b), nn.ReLU()]
        return nn.Sequential(*parts)

    return make


def planned(make: Callable[[], nn.Module], inputs: Any = f"float32[B,{WIDE}]", **settings: Any) -> Plan:
    return plan(make, inputs, **{"micro": 3, "device": "cpu"} | settings)


def numels(make: Callable[[], nn.Module]) -> list[int]:
    return [p.numel() for p in make().parameters() if p.requires_grad]


@settings(max_examples=8, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.sampled_from(["adamw", "sgd", "sgd-momentum", "adamw-fused"]),
    st.sampled_from(["plain", "ddp"]),
)
def test_states_are_the_closed_forms(widths: list[int], optimizer: str, strategy: str) -> None:
    make = mlp(WIDE, *widths)
    world = 1 if strategy == "plain" else 4
    after = planned(make, optimizer=optimizer, strategy=strategy, world=world).at("after step").bytes
    sizes = numels(make)
    each = {"sgd": 0, "sgd-momentum": 4}.get(optimizer, 8)
    counts = 4 * len(sizes) if each == 8 else 0
    assert after["parameters"] == 4 * sum(sizes)
    assert after["optimizer"] == each * sum(sizes) + counts
    assert after["gradients"] == after["activations"] == after["temporary"] == 0
    # All gradients once more, and which parameters were used, twice over gloo (reducer.cpp).
    assert after["buckets"] == (4 * sum(sizes) + 8 * len(sizes) if strategy == "ddp" else 0)


@settings(max_examples=5, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(1, 5))
def test_fsdp2_shares_out_rows(widths: list[int], world: int) -> None:
    """A parameter's rows in chunks of ceil(rows / ranks); over all ranks they are the whole network."""
    make = mlp(WIDE, *widths)
    shapes = [p.shape for p in make().parameters()]
    found = []
    for rank in range(world):
        after = planned(make, strategy="fsdp2", world=world, rank=rank).at("after step").bytes
        rows = [min(max(s[0] - rank * -(-s[0] // world), 0), -(-s[0] // world)) for s in shapes]
        own = sum(r * s[1:].numel() for r, s in zip(rows, shapes, strict=True))
        # Each shard is padded to the largest.
        padded = sum(-(-s[0] // world) * s[1:].numel() for s in shapes)
        assert 4 * own <= after["parameters"] <= 4 * padded
        found.append(after["parameters"])
    assert sum(found) >= 4 * sum(s.numel() for s in shapes)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_has_its_moments(strategy: str) -> None:
    world = 1 if strategy == "plain" else 2
    made = planned(mlp(WIDE, 64, 8), strategy=strategy, world=world, deepspeed=SMALL, ema=True)
    assert made.strategy == strategy and made.parameters == sum(numels(mlp(WIDE, 64, 8)))
    peaks = {name: made.at(name).allocated for name in ("forward peak", "backward peak", "step peak")}
    assert min(peaks.values()) >= made.at("after step").allocated > 0
    assert made.at("after forward").bytes["activations"] > 0
    assert made.at("after step").bytes["ema"] > 0


SMALL = {"zero_optimization": {"reduce_bucket_size": 1000}}


class Tied(nn.Module):
    """An embedding that is the output layer too, as in most language models."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, WIDE)
        self.out = nn.Linear(WIDE, 50, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words: Tensor) -> Tensor:
        return self.out(self.words(words))


@pytest.mark.parametrize("precision", ["fp32", "pure-bf16"])
@pytest.mark.parametrize("strategy", ["plain", "fsdp2", "zero2", "zero3"])
def test_tied_weights_are_there_once(strategy: str, precision: str) -> None:
    if precision == "pure-bf16" and strategy.startswith("zero"):
        precision = "bf16"
    made = plan(Tied, "int64[B,5]", strategy=strategy, precision=precision, deepspeed=SMALL, device="cpu")
    assert made.parameters == 50 * WIDE
    width = 4 if precision == "fp32" else 2
    assert made.at("after step").bytes["parameters"] == width * 50 * WIDE


class Frozen(nn.Module):
    """A backbone that stays as it is, with a buffer, and a head that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(WIDE, 30), nn.BatchNorm1d(30)).requires_grad_(False)
        self.head = nn.Linear(30, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


@pytest.mark.parametrize("strategy", ["plain", "ddp", "zero1", "zero2", "zero3"])
def test_frozen_weights_have_neither_gradients_nor_moments(strategy: str) -> None:
    learned, frozen = 62, WIDE * 30 + 30 + 60
    made = planned(Frozen, strategy=strategy, deepspeed=SMALL)
    after = made.at("after step").bytes
    assert after["parameters"] == 4 * (learned + frozen) and made.gradients == 4 * learned
    assert after["optimizer"] in (8 * learned + 8, 8 * learned + 4)  # step counts of two tensors, or of one
    assert after["data"] >= 4 * 3 * WIDE + 4 * 60 + 8  # the input, running mean and variance, their count


@dataclass
class Output:
    """What some libraries return."""

    hidden: Tensor
    loss: Tensor | None = None


class Returns(nn.Module):
    """A network whose output has any form."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.layer = form, nn.Linear(WIDE, 4)

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        y = self.layer(x) * scale[:, None]
        loss = y.square().mean()
        return {
            "tensor": y, "tuple": (y, None), "dict": {"loss": loss, "y": y}, "dataclass": Output(y, loss),
        }[self.form]  # fmt: skip


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict", "dataclass"])
def test_outputs_of_any_form(form: str) -> None:
    inputs = {"x": torch.zeros(7, WIDE), "scale": torch.ones(7)}
    made = plan(lambda: Returns(form), inputs, device="cpu")
    assert made.micro == 7 and made.at("after step").bytes["data"] == 4 * 7 * (WIDE + 1)


def test_a_loss_of_output_and_inputs() -> None:
    def own(output: Tensor, given: Any) -> Tensor:
        return (output - given["y"]).square().sum()

    class Net(nn.Linear):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return super().forward(x)

    made = plan(lambda: Net(4, 2), {"x": "float32[B,4]", "y": "float32[B,2]"}, loss=own, device="cpu")
    assert made.gradients == 4 * 10


def test_dropout_keeps_a_byte_on_a_gpu_and_a_number_on_a_cpu() -> None:
    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(WIDE, 100), nn.Dropout(0.1), nn.Linear(100, 1))

    kept = [planned(make, device=d).at("after forward").bytes["activations"] for d in ("cpu", "cuda")]
    assert kept[0] - kept[1] == 3 * 100 * 3  # a mask of fp32 in place of one of bytes


def test_adam8bit_by_its_formula() -> None:
    make = mlp(WIDE, 1000, 2)  # 24,000 weights, 1,000 biases, 2,000 weights, 2 biases
    after = planned(make, optimizer="adam8bit").at("after step").bytes
    sizes = numels(make)
    large = [n for n in sizes if n >= LEAST]
    blocks = sum(-(-n // BLOCK) for n in large)
    small = sum(n for n in sizes if n < LEAST)
    assert after["optimizer"] == 2 * sum(large) + 2 * 4 * blocks + 8 * small + 2 * CODES


@pytest.mark.parametrize("name", ["adam", "adafactor", "muon", "adamw"])
@pytest.mark.parametrize("strategy", ["plain", "zero2"])
def test_optimizers_of_torch(name: str, strategy: str) -> None:
    made = planned(mlp(WIDE, 64, 8), optimizer=name, strategy=strategy, deepspeed=SMALL)
    assert 0 < made.at("after step").bytes["optimizer"] <= 8 * made.parameters + 4 * 8
    assert made.at("step peak").allocated >= made.at("after step").allocated


class Checkpointed(nn.Module):
    """Blocks that torch.utils.checkpoint runs again in backward."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(mlp(WIDE, 200, WIDE)() for _ in range(4))
        self.on = False

    def gradient_checkpointing_enable(self) -> None:
        """As transformers calls it."""
        self.on = True

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            again = torch.utils.checkpoint.checkpoint
            x = again(block, x, use_reentrant=False) if self.on else block(x)
        return x


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("strategy", ["plain", "fsdp2", "zero3"])
def test_checkpointing_keeps_less(strategy: str, device: str) -> None:
    world = 1 if strategy == "plain" else 2
    with_it, without = (
        planned(
            Checkpointed, strategy=strategy, checkpointing=on, world=world, micro=100, device=device,
            deepspeed=SMALL, precision="bf16",
        )
        for on in (True, False)
    )  # fmt: skip
    kept = [made.at("after forward").bytes["activations"] for made in (with_it, without)]
    assert kept[0] < kept[1] / 2
    assert with_it.at("after step").allocated == without.at("after step").allocated


class Looks(nn.Linear):
    """Its way depends on what is in a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        if (x > 0).all():
            x = 2 * x
        return super().forward(x)


def test_what_depends_on_values_is_told_where() -> None:
    with pytest.raises(InputError) as caught:
        plan(lambda: Looks(WIDE, 2), f"float32[B,{WIDE}]", device="cpu")
    line = str(caught.value)
    assert __file__ in line and "in forward" in line and "looks at values" in line and "\n" not in line


class ByChance(nn.Module):
    """Drop rates from a tensor's values, and layers left out by chance."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [x.item() for x in torch.linspace(0, 0.5, 3)]
        self.layers = nn.ModuleList(nn.Linear(WIDE, WIDE) for _ in self.rates)

    def forward(self, x: Tensor) -> Tensor:
        for layer, rate in zip(self.layers, self.rates, strict=True):
            if torch.rand([]) < rate:
                continue
            x = layer(x)
        return x


def test_chance_leaves_no_layer_out() -> None:
    made = planned(ByChance)
    assert made.gradients == 4 * 3 * (WIDE + 1) * WIDE


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"strategy": "zero9"}, "strategy 'zero9': allowed are plain, ddp, fsdp2, zero0"),
        ({"precision": "int3"}, "precision 'int3': allowed are fp32, bf16, fp16, pure-bf16"),
        ({"world": 2}, "strategy plain is of one rank, not 2"),
        ({"strategy": "ddp", "world": 2, "rank": 2}, "rank 2 is not one of 2 ranks"),
        ({"offload": "optimizer"}, "goes with strategy zero1, zero2, zero3, not plain"),
        ({"optimizer": "sgdw"}, "optimizer 'sgdw': allowed are adamw, adam"),
        ({"checkpointing": True}, "has no gradient checkpointing of its own"),
        ({"micro": 0}, "micro"),
        ({"device": "tpu"}, "device 'tpu': allowed are cuda, cpu"),
        ({"strategy": "zero1", "deepspeed": {"zero_optimization": {"stage": 2}}}, "the strategy is zero1"),
        ({"side": 3}, "side: only of a library's usual inputs"),
    ],
)
def test_bad_settings_are_one_line(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(mlp(WIDE, 4), **wrong)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ("float33[B]", "dtypes are float32"),
        ("float32[B,-1]", "expected DTYPE[SIZE"),
        ("float32[B,x]", "neither a size nor B"),
        ("float32", "expected DTYPE"),
        (3, "is no tensor"),
        ("float32[B,99999999999999999999,8]", "more than 2^40"),
        ("float32[B,9]", "RuntimeError"),
        (None, "give them"),
    ],
)
def test_bad_inputs_are_one_line(inputs: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(mlp(WIDE, 4), inputs)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_what_makes_no_network() -> None:
    for make, said in (
        (lambda: 3, "not a torch.nn.Module"),
        (lambda: torch.jit.script(nn.Linear(4, 4)), "is compiled"),
    ):
        with pytest.raises(InputError, match=said):
            planned(make)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="nothing is trained"):
        planned(lambda: mlp(WIDE, 4)().requires_grad_(False))


def test_gradients_as_views_of_ddps_buckets_are_there_once() -> None:
    apart, views = (
        planned(mlp(WIDE, 300, 300, 8), strategy="ddp", world=2, gradient_as_bucket_view=on)
        for on in (False, True)
    )
    assert apart.gradients == views.gradients == 4 * apart.parameters  # which are the buckets, or beside them
    assert views.at("step peak").bytes["buckets"] < apart.at("step peak").bytes["buckets"]
    saved = apart.at("step peak").allocated - views.at("step peak").allocated
    assert saved == 4 * apart.parameters
    assert views.at("backward peak").allocated < apart.at("backward peak").allocated


def test_a_network_that_is_there_stays_as_it_is() -> None:
    net = mlp(WIDE, 4)()
    before = [p.clone() for p in net.parameters()]
    made = [planned(net), planned(lambda: nn.Sequential(net))]  # type: ignore[arg-type]
    assert [m.parameters for m in made] == [sum(p.numel() for p in before)] * 2
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters(), strict=True))
    net(torch.zeros(2, WIDE)).sum().backward()
    assert not net._forward_pre_hooks and not net[0]._forward_pre_hooks


@pytest.mark.parametrize(
    ("way", "width"),
    [
        (lambda n: n.to(torch.bfloat16), 2),
        (lambda n: n.half(), 2),
        (lambda n: n.to("cpu"), 4),
        (lambda n: n.cuda(), 4),
        (lambda n: n.to("cuda:0", torch.bfloat16), 2),
        (lambda n: n.to(memory_format=torch.channels_last), 4),
    ],
)
def test_factories_may_convert_and_place(way: Callable[[nn.Module], nn.Module], width: int) -> None:
    made = plan(lambda: way(Tied()), "int64[B,5]", device="cpu")
    assert made.parameters == 50 * WIDE  # tied still
    assert made.at("after step").bytes["parameters"] == width * 50 * WIDE


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(
    "draw",
    [lambda: torch.rand([]), lambda: torch.rand(1).item(), lambda: random.random(), lambda: np.random.rand()],
)
def test_chance_goes_the_way_that_takes_more(draw: Callable[[], Any], keeps: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(WIDE, WIDE) for _ in range(3))
            self.out = nn.Linear(WIDE, 1)

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                if (draw() < 0.5) == keeps:
                    x = layer(x)
            return self.out(x)

    made = planned(Net)
    assert made.gradients == 4 * (3 * (WIDE + 1) * WIDE + WIDE + 1) and "chance" in made.notes[0]


def test_what_is_the_losss_alone_and_recurrent_layers_are_told() -> None:
    inputs = {"input": f"float32[B,9,{WIDE}]", "label": "int64[B]"}

    def own(output: Any, given: Any) -> Tensor:
        return nn.functional.cross_entropy(output[0][:, -1], given["label"])

    made = plan(lambda: nn.LSTM(WIDE, 8, batch_first=True), inputs, loss=own, micro=2, device="cpu")
    assert made.at("after step").bytes["data"] == 4 * 2 * 9 * WIDE + 8 * 2
    assert "LSTM" in made.notes[0]


def test_the_largest_micro_batch_fits_and_the_next_does_not() -> None:
    job = job_of(
        mlp(WIDE, 3000, 8), f"float32[B,{WIDE}]", {}, 1, loss=loss_of(None),
        optimizer=torch.optim.SGD, cuda=True,
    )  # fmt: skip
    room = answers.plan_of(job).smi + (64 << 20)
    most = answers.largest(job, room, ASSUMED)
    sizes = [
        planned(mlp(WIDE, 3000, 8), optimizer=torch.optim.SGD, micro=n, device="cuda").smi
        for n in (most, most + 1)
    ]
    assert most > 1 and sizes[0] <= room < sizes[1]


def test_the_command_plans_a_factory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "somebodys.py").write_text("from torch import nn\ndef net(): return nn.Linear(4, 2)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    command.main(
        ["somebodys:net", "--inputs", "float32[B,4]", "--micro-batch", "8", "--gpu", "24GB", "--json"]
    )
    tree = json.loads(capsys.readouterr().out)
    assert tree["run"]["parameters"] == 10 and tree["run"]["strategy"] == "plain"
    assert tree["advice"] == [] and tree["planned"][0]["capacity"]["bytes"] == 22_510 << 20
    for target, said in (
        ("somebodys:no", "has no 'no'"),
        ("nobodys:net", "no module nobodys"),
        ("nowhere", "no such file"),
    ):
        with pytest.raises(InputError, match=said):
            command.main([target, "--inputs", "float32[B,4]"])


def test_a_plan_needs_no_deepspeed() -> None:
    program = (
        "import sys, torch; from diffcore.memory import plan; "
        "plan(lambda: torch.nn.Linear(3, 2), 'float32[B,3]', strategy='zero3'); "
        "sys.exit('deepspeed' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0
