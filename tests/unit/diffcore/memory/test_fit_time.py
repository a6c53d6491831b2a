"""The time model: closed forms against sums by hand, and what makes a step longer or shorter."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.machine.cards import CARDS
from diffcore.config import configure
from diffcore.config.offload import OFFLOADS
from diffcore.memory.fitting.command import command
from diffcore.memory.fitting.layouts import doubling, laid_out
from diffcore.memory.fitting.measured import Measured
from diffcore.memory.fitting.timing import AGAIN, Clock, Layout, Setting, Times, Work, step, traffic
from tests.support.gpu_run import a_run

AVATAR = Work(flops=96.05e9, optimizer=0, parameters=76_902_915, tensors=162, kernels=631)
H200 = CARDS["H200"]
SETTINGS = [
    Setting(zero, precision, checkpointing, offload)
    for zero in range(4)
    for precision in ("bf16", "fp16", "fp32")
    for checkpointing in AGAIN
    for offload, row in OFFLOADS.items()
    if zero in row.stages
]
settings = st.sampled_from(SETTINGS)
layouts = st.builds(Layout, st.integers(1, 16), st.integers(1, 8), st.floats(1, 400))
works = st.builds(
    Work, st.floats(1e6, 1e13), st.floats(0, 1e13), st.integers(1, 10**10), st.integers(1, 10**4),
    st.integers(1, 10**5),
)  # fmt: skip
counts = st.integers(1, 64)


def test_the_run_that_the_rates_are_from() -> None:
    """docs/gpu.md: 1,303 images/s of configs/avatar-adamw.yaml at ZeRO-1 in bf16, batch 128, on an H200."""
    times = step(AVATAR, H200, Setting(1, "bf16", "none", "none"), Layout(1, 1), 128, 1)
    assert 128 / times.step == pytest.approx(1303, rel=0.05)
    assert times.optimizer == pytest.approx(0.027, rel=0.05) and times.communication == times.offload == 0


@pytest.mark.parametrize(
    ("zero", "precision", "accumulation", "bytes_a_parameter"),
    [(0, "fp32", 1, 8), (0, "bf16", 4, 8), (1, "bf16", 4, 6), (2, "bf16", 1, 6), (2, "bf16", 3, 14),
     (3, "bf16", 1, 6), (3, "fp32", 2, 24)],
)  # fmt: skip
def test_bytes_on_the_wire(zero: int, precision: str, accumulation: int, bytes_a_parameter: float) -> None:
    """All-reduce 2 P, all-gather P; ZeRO-3 two gathers and a reduction a micro batch.
    Under ZeRO-0 gradients are fp32, as the weights of autocast."""
    setting = Setting(zero, precision, "none", "none")
    assert traffic(setting, 1000, 8, accumulation) == bytes_a_parameter * 1000 * 7 / 8
    assert traffic(setting, 1000, 1, accumulation) == 0


@given(
    work=works,
    card=st.sampled_from(sorted(CARDS)),
    setting=settings,
    layout=layouts,
    micro=counts,
    acc=counts,
)
def test_more_work_takes_longer_and_a_better_card_less(
    work: Work, card: str, setting: Setting, layout: Layout, micro: int, acc: int
) -> None:
    def took(
        work: Work = work, layout: Layout = layout, micro: int = micro, acc: int = acc, **card_: float
    ) -> float:
        of = replace(CARDS[card], **card_)  # type: ignore[arg-type]
        return step(work, of, setting, layout, micro, acc).step

    base = took()
    assert base > 0
    for field in ("flops", "optimizer", "parameters", "tensors", "kernels"):
        assert took(replace(work, **{field: 2 * getattr(work, field)})) >= base
    assert took(micro=micro + 1) >= base and took(acc=acc + 1) > base
    have = CARDS[card]
    for field in ("half", "tf32", "bandwidth", "link", "bus"):
        assert took(**{field: 2 * getattr(have, field)}) <= base
    assert took(layout=replace(layout, network=2 * layout.network)) <= base


@given(work=works, setting=settings, layout=layouts, micro=counts, acc=counts)
def test_what_saves_memory_is_not_faster(
    work: Work, setting: Setting, layout: Layout, micro: int, acc: int
) -> None:
    """Checkpointing, offloading and smaller micro batches never come before what does without."""
    base = step(work, H200, setting, layout, micro, acc).step
    plain = step(work, H200, replace(setting, checkpointing="none"), layout, micro, acc).step
    assert plain <= base
    # The same images in half the micro batches.
    assert (
        step(work, H200, setting, layout, 2 * micro, acc).step
        <= 1.000001 * step(work, H200, setting, layout, micro, 2 * acc).step
    )
    two, three = (traffic(replace(setting, zero=n, offload="none"), 1000, 8, acc) for n in (2, 3))
    assert two <= three


def test_layouts_are_whole_nodes() -> None:
    assert laid_out(4, 8, 25) == Layout(1, 4, 25) and laid_out(16, 8, 25) == Layout(2, 8, 25)
    assert laid_out(12, 8, 25) is None
    assert [doubling(1, 1), doubling(1, 4), doubling(2, 7), doubling(3, 3)] == [
        [1],
        [1, 2, 4],
        [2, 4, 7],
        [3],
    ]


@given(
    setting=settings, layout=layouts, micro=counts, size=st.none() | counts,
    run=st.text(st.characters(blacklist_categories=["C"]), min_size=1, max_size=20),
)  # fmt: skip
def test_the_command_says_the_settings(
    setting: Setting, layout: Layout, micro: int, size: int | None, run: str
) -> None:
    """Read as a shell and as the config's own flags, whatever was given beside."""
    beside = ["--engine.zero", "3", "--batch.micro=7", "--data.threads", "3", f"--seed={micro}"]
    words = shlex.split(command(f"{run}.yaml", beside, setting, layout, micro, size))
    at = words.index("--config")
    assert (
        words[:2] == ["diffcore", "train" if layout.world == 1 else "submit"]
        and words[at + 1] == f"{run}.yaml"
    )
    assert words[2:at] == ([] if layout.world == 1 else
        ["--nodes", str(layout.nodes), "--gpus-per-node", str(layout.per_node)])  # fmt: skip
    _, over = configure.command_line(["--config", "x", *words[at + 2 :]])
    engine = {
        "zero": str(setting.zero), "precision": setting.precision, "checkpointing": setting.checkpointing,
        "offload": setting.offload,
    }  # fmt: skip
    batch = {"micro": str(micro)} | ({} if size is None else {"size": str(size)})
    assert over == {"engine": engine, "batch": batch, "data": {"threads": "3"}, "seed": str(micro)}


def test_a_run_says_how_fast_a_step_is(tmp_path: Path) -> None:
    measured = Measured.of(a_run(tmp_path / "run", rate=1000))
    clock = measured.clock(Clock(AVATAR, CARDS["A100 80GB"]))
    setting, layout = Setting(1, "bf16", "none", "none"), Layout(1, 1)
    own = replace(clock, card=H200).times(setting, layout, 128, 1)
    assert own.step == pytest.approx(0.128)
    assert measured.is_of(H200, setting, layout, 128, 1) and not measured.is_of(H200, setting, layout, 64, 2)
    plain = Clock(AVATAR, CARDS["A100 80GB"]).times(setting, layout, 128, 1)
    assert clock.times(setting, layout, 128, 1) == plain.scaled(clock.factor) and isinstance(plain, Times)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"device": "cpu"}, "trained on a CPU"),
        ({"device": "NVIDIA toaster"}, "no card that is known"),
        ({"parameters": 12}, "a network of 12 parameters, the config's has 76,902,915"),
        ({"rate": -10.0}, "no step was logged"),
    ],
)
def test_a_run_that_says_nothing_of_it_is_refused(
    wrong: dict[str, object], says: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=says):
        Measured.of(a_run(tmp_path / "run", **wrong)).clock(Clock(AVATAR, H200))  # type: ignore[arg-type]
