"""``fit``: what it says fits does by the plan, what it says is the least or most is, and its words."""

from __future__ import annotations

import itertools
import json
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.machine import cards
from diffbase.machine.cards import MIB, Card
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory import __main__ as commands
from diffcore.memory.advise import MOST, Planner, settled
from diffcore.memory.calibration import ASSUMED
from diffcore.memory.fitting import find
from diffcore.memory.fitting.choose import Chooser
from diffcore.memory.fitting.space import Space
from diffcore.memory.fitting.timing import Clock, Layout, Setting
from diffcore.memory.fitting.work import work_of
from diffcore.memory.planning.plan import Data, between, plan, trace_quietly
from shards.schema import CARTOON_SET
from tests.support.gpu_run import a_run

DATA = Data(tuple(CARTOON_SET), 16)
ONE, TWO, FOUR = Layout(1, 1), Layout(1, 2), Layout(2, 2)
OUTSIDE = (ASSUMED.context + ASSUMED.workspaces + ASSUMED.nccl) // MIB


def card(mib: int) -> Card:
    """With so many MiB beside what is outside torch's allocator."""
    return replace(cards.of_size(24), name=f"card {mib}", mib=OUTSIDE + mib)


@pytest.fixture(scope="module")
def chooser(memory_config: Path) -> Chooser:
    config = configure.replace(configure.load(memory_config), "batch", {"micro": None, "size": 16})
    planner = Planner(config, DATA)
    return Chooser(planner, Space(config), Clock(work_of(planner, config), card(40)))


def everything(chooser: Chooser, layout: Layout) -> list[tuple[float, int]]:
    """Seconds an image and bytes of every setting with every micro batch, by brute force."""
    found = []
    for setting in chooser.space.settings(chooser.clock.card, layout):
        for micro in chooser.space.micros(layout):
            plan = chooser.plan(setting, layout, micro)
            times = chooser.clock.times(setting, layout, micro, plan.accumulation)
            found.append((times.step / 16, plan.smi))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layout", "held"), [(ONE, {"precision": "fp32"}), (FOUR, {"checkpointing": "none"})]
)
def test_the_first_is_the_fastest_of_all_that_fit(
    chooser: Chooser, layout: Layout, held: dict[str, str]
) -> None:
    """At rooms that hold everything, some of it and nothing; all of what is listed fits by its plan."""
    chooser = replace(chooser, space=replace(chooser.space, held=held))
    brute = everything(chooser, layout)
    sizes = sorted({smi for _, smi in brute})
    for room in (sizes[-1], *sizes[:: len(sizes) // 3], sizes[0] - 1):
        here = replace(chooser, clock=replace(chooser.clock, card=card(room // MIB - OUTSIDE)))
        found = here.ranked([layout], most=100)
        fitting = [seconds for seconds, smi in brute if smi <= here.room]
        assert bool(found) == bool(fitting) == here.fits_at_all(layout)
        if not found:
            continue
        assert found[0].order == pytest.approx(min(fitting), rel=1e-6)
        assert [one.order for one in found] == sorted(one.order for one in found)
        for one in found:
            config = here.space.with_choice(one.setting, one.micro)
            again = Planner(config, DATA).plan(config, layout.world) if one is found[0] else one.plan
            assert again.smi == one.plan.smi <= here.room and one.images == 16
            larger = [n for n in here.space.micros(layout) if n > one.micro]
            assert not larger or here.plan(one.setting, layout, larger[0]).smi > here.room


def test_what_is_held_stays(chooser: Chooser) -> None:
    held = {"zero": 2, "checkpointing": "full", "micro": 4}
    space = replace(chooser.space, held=held)
    found = replace(chooser, space=space).ranked([TWO], most=50)
    assert found and {(one.setting.zero, one.setting.checkpointing, one.micro) for one in found} == {
        (2, "full", 4)
    }
    assert {one.setting.precision for one in found} == {"bf16", "fp32"}
    old = replace(chooser.clock.card, bf16=False)
    assert {one.precision for one in space.settings(old, TWO)} == {"fp16", "fp32"}
    assert replace(space, held={"micro": 5}).micros(TWO) == [] and space.micros(Layout(1, 3)) == []
    assert chooser.space.micros(TWO) == [1, 2, 4, 8]


@pytest.mark.slow
def test_the_smallest_card_and_the_one_below(chooser: Chooser, monkeypatch: pytest.MonkeyPatch) -> None:
    below = [card(mib) for mib in range(2, 60, 4)]
    monkeypatch.setattr(find, "by_size", lambda: below)
    held = replace(
        chooser, space=replace(chooser.space, held={"micro": 8, "checkpointing": "none", "precision": "fp32"})
    )
    found = find.smallest_card(held, TWO)
    at = below.index(found.clock.card)
    assert at > 0 and found.ranked([TWO])
    assert not find.on(held, below[at - 1]).ranked([TWO])
    monkeypatch.setattr(find, "by_size", lambda: below[:at])
    with pytest.raises(InputError, match="fits no card that is known here, on 2 of it"):
        find.smallest_card(held, TWO)


@pytest.mark.slow
def test_the_fewest_gpus_and_one_step_less(chooser: Chooser) -> None:
    config = configure.replace(chooser.space.config, "model", {"channels": (64, 128, 256)})
    planner = Planner(config, DATA)
    clock = replace(chooser.clock, work=work_of(planner, config))
    chooser = replace(chooser, planner=planner, space=Space(config), clock=clock)
    held = replace(
        chooser.space, held={"checkpointing": "none", "precision": "fp32", "zero": 1, "offload": "none"}
    )
    sizes = {world: replace(chooser, space=held).least(Layout(1, world)) for world in (1, 2, 4, 8)}
    assert sizes[1] > sizes[2] > sizes[4]
    here = replace(chooser, space=held, clock=replace(chooser.clock, card=card(sizes[4] // MIB - OUTSIDE)))
    found = find.fewest_gpus(here, 8, 25.0)
    assert found == Layout(1, 4, 25.0) and here.ranked([found]) and not here.ranked([Layout(1, 2)])
    with pytest.raises(
        InputError, match=r"fits no number of card 1 that batch\.size 16 divides among, up to 16"
    ):
        find.fewest_gpus(replace(here, clock=replace(here.clock, card=card(1))), 8, 25.0)


@pytest.mark.slow
def test_the_largest_batch_and_one_more(chooser: Chooser) -> None:
    held = replace(chooser.space, held={"checkpointing": "selective", "precision": "bf16"})
    here = replace(chooser, space=held)
    best = find.largest_batch(here, TWO)
    assert best.plan.smi <= here.room and best.images == 2 * best.micro and 1 < best.micro < MOST
    for setting in held.settings(here.clock.card, TWO):
        assert here.plan(setting, TWO, best.micro + 1, 2 * (best.micro + 1)).smi > here.room
    with pytest.raises(InputError, match="not even one image a rank fits card 1"):
        find.largest_batch(replace(here, clock=replace(here.clock, card=card(1))), TWO)


@pytest.mark.slow
def test_the_longest_side_and_the_next(chooser: Chooser) -> None:
    held = {"checkpointing": "none", "precision": "fp32", "zero": 1, "offload": "none", "micro": 1}
    here = replace(chooser, space=replace(chooser.space, held=held))
    side, longest = find.longest_side(here, TWO)
    assert side % 2 == 0 and side > 16 and longest.planner.data.size == side
    assert longest.ranked([TWO]) and not find.of_side(here, side + 2).ranked([TWO])
    assert longest.clock.work.flops > here.clock.work.flops
    with pytest.raises(InputError, match="images of 2 x 2 pixels, the smallest, do not fit card 1"):
        find.longest_side(replace(here, clock=replace(here.clock, card=card(1))), TWO)


@pytest.mark.slow
def test_the_answer_is_what_its_command_starts(
    memory_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """--json's first candidate: its command's flags give the config whose plan it is."""
    fit = [
        "fit",
        "--config",
        str(memory_config),
        "--gpu",
        "rtx 4090",
        "--gpus",
        "2",
        "--checkpointing",
        "none",
    ]
    commands.main([*fit, "--precision", "fp32", "--top", "3", "--model.heads", "4", "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert tree["schema"] == "diffcore.fit/1" and len(tree["candidates"]) == 3
    assert tree["card"] == {
        "name": "RTX 4090", "gb": 24, "usable_bytes": 24_200 * MIB, "usable": "known", "rates_of": "RTX 4090",
    }  # fmt: skip
    best = tree["best"]
    assert best == tree["candidates"][0] and best["timed"] == "modelled" and best["bucket_elements"] > 0
    words = shlex.split(best["command"])
    path, over = configure.command_line(words[words.index("--config") :])
    config = configure.load(path, over)
    assert (config.model.heads, config.engine.precision, config.engine.checkpointing) == (4, "fp32", "none")
    assert Planner(config).plan(config, 2).smi == best["planned_bytes"]
    rates = [row["images_per_second"] for row in tree["candidates"]]
    assert rates == sorted(rates, reverse=True)
    commands.main([*fit, "--zero", "1", "--offload", "none"])
    said = capsys.readouterr().out
    assert "RTX 4090: 24,200 MiB (known)" in said and "the first: diffcore submit --nodes 1" in said
    assert "modelled" in said and "as the config is: micro batch 4" in said


@pytest.mark.slow
def test_several_nodes_are_put_in_one_order(memory_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit = ["fit", "--config", str(memory_config), "--gpu", "24GB", "--nodes", "1-4", "--gpus-per-node", "2"]
    held = ["--zero", "1", "--precision", "bf16", "--checkpointing", "none", "--offload", "none"]
    commands.main([*fit, *held, "--batch.size", "64", "--batch.micro", "4", "--network", "12.5", "--json"])
    tree = json.loads(capsys.readouterr().out)
    assert sorted(row["nodes"] for row in tree["candidates"]) == [1, 2, 4]
    assert any("a node sends 12.5 GB/s" in note for note in tree["notes"])
    assert any("rates of A10G: of the card only the memory is known" in note for note in tree["notes"])
    assert all("--batch.size 64" in row["command"] for row in tree["candidates"])
    assert [row["nodes"] for row in tree["by_nodes"]] == [1, 2, 4]
    assert sorted(tree["by_nodes"], key=lambda row: -row["images_per_second"]) == tree["candidates"]
    commands.main([*fit, *held, "--batch.size", "64", "--batch.micro", "4"])
    said = capsys.readouterr().out
    assert "nodes x GPUs" in said and "4 x 2" in said


@pytest.mark.slow
def test_a_measured_run_says_how_long_a_step_takes(
    memory_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The row that is the run itself takes what the run took, and is marked so; other cards follow it."""
    run = a_run(tmp_path / "run", rate=500.0, parameters=131_171)
    fit = [
        "fit",
        "--config",
        str(memory_config),
        "--from",
        str(run),
        "--batch.size",
        "128",
        "--checkpointing",
    ]
    held = ["none", "--precision", "bf16", "--offload", "none", "--micro-batch", "128"]
    commands.main([*fit, *held, "--gpu", "H200", "--json"])
    rows = json.loads(capsys.readouterr().out)["candidates"]
    assert {row["zero"]: row["timed"] for row in rows} == {0: "modelled", 1: "measured"}
    own = next(row for row in rows if row["zero"] == 1)
    assert own["images_per_second"] == pytest.approx(500) and own["seconds"]["step"] == pytest.approx(0.256)
    commands.main([*fit, *held, "--gpu", "H200"])
    said = capsys.readouterr().out
    assert (
        " * " in said and "but for the row marked * (measured)" in said and f"that {run} on H200 took" in said
    )
    commands.main([*fit, *held, "--gpu", "T4", "--precision", "fp16", "--json"])
    there = json.loads(capsys.readouterr().out)["candidates"]
    assert {row["timed"] for row in there} == {"modelled"}
    assert there[0]["images_per_second"] <= own["images_per_second"]


def test_traces_of_autocast_are_scaled(chooser: Chooser) -> None:
    """What is freed at once is in one order, so that a third micro batch's trace follows from two."""
    config = chooser.space.with_choice(Setting(0, "bf16", "none", "none"), 2)
    found = [settled(trace_quietly(config, DATA, micro)) for micro in (2, 4, 16)]
    scaled = between(found[0], found[1], 16)
    assert scaled is not None and scaled.events == found[2].events
    raw = trace_quietly(config, DATA, 2)
    assert (
        plan(config, 1, data=DATA, traced=raw).moments == plan(config, 1, data=DATA, traced=found[0]).moments
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--gpu", "A100"], "it may be A100 40GB or .*write it as 24GB"),
        ([], "--gpu is missing"),
        (["--find", "card", "--gpu", "24"], "--find card looks for the card"),
        (["--find", "card", "--calibration", "NVIDIA H200"], "leave --calibration out"),
        (["--find", "gpus", "--gpu", "24", "--gpus", "2"], "--find gpus looks for their number"),
        (["--gpu", "24", "--nodes", "4-2"], "a number of nodes, or a range"),
        (["--gpu", "24", "--gpus", "12"], "not whole nodes of 8"),
        (["--gpu", "24", "--gpus", "3"], "batch.size 8 is not micro x accumulation x world"),
        (["--gpu", "24", "--mfu", "2"], "--mfu: a share"),
        (["--gpu", "24", "--network", "0"], "--network: 0"),
        (
            ["--gpu", "1GB"],
            "nothing fits 1 x 1GB with what is held: .* MiB are planned at least, 930 are there",
        ),
        (["--gpu", "24", "--from", "nowhere"], "nowhere"),
    ],
)
def test_mistakes_of_fit_are_one_line(flags: list[str], says: str, memory_config: Path) -> None:
    with pytest.raises(InputError, match=says) as error:
        commands.main(["fit", "--config", str(memory_config), *flags])
    assert "\n" not in str(error.value)


def test_a_json_of_deepspeed_holds_its_stage(memory_config: Path, config_of_2: Config) -> None:
    space = Space(config_of_2, {"zero": 2})
    assert {one.zero for one in space.settings(card(40), TWO)} == {2}
    free = Space(config_of_2).settings(card(40), TWO)
    assert {one.zero for one in free} <= {0, 1, 2, 3} and asdict(free[0])["zero"] == 2


@pytest.fixture
def config_of_2(memory_config: Path) -> Config:
    return configure.replace(configure.load(memory_config), "engine", {"zero": 2})


def test_first_among_what_rises() -> None:
    for length, at in itertools.product(range(5), range(6)):
        among = list(range(length))
        assert find.first(among, lambda n, at=at: n >= at) == (at if at < length else None)
