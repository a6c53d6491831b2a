"""The memory report: its words, its page, what it is compared by, and what other programs' viewers get."""

from __future__ import annotations

import copy
import json
import pickle
import pickletools
import re
from collections import Counter
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.cuda import _memory_viz as viewer

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory import __main__ as commands
from diffcore.memory import advise, comparing, reading, report, tables
from diffcore.memory.exports import memory_viz, perfetto
from diffcore.memory.page.comparison import comparison
from diffcore.memory.page.modules import nodes_of, tree
from diffcore.memory.page.page import page
from diffcore.memory.page.steps import _beside, instants
from diffcore.memory.planning.lifetimes import changes, lifetimes, phase_at, points
from diffcore.memory.planning.plan import Data, Plan
from diffcore.memory.planning.stream import Stream
from shards.schema import CARTOON_SET

DATA = Data(tuple(CARTOON_SET), 16)
MIB = 2**20
Tree = dict[str, Any]


@pytest.fixture(scope="module")
def config(memory_config: Path) -> Config:
    return configure.load(memory_config)


@pytest.fixture(scope="module")
def planner(config: Config) -> advise.Planner:
    return advise.Planner(config, DATA)


@pytest.fixture(scope="module")
def small(planner: advise.Planner, config: Config) -> Plan:
    return planner.plan(config, 2)


def moment(name: str, host: int = 0, **sizes: int) -> Tree:
    total = sum(sizes.values())
    return {"name": name, "bytes": sizes, "host": host, "allocated": total, "reserved": total + MIB}


def rank(number: int = 0, device: str = "cpu", extra: int = 0, **more: Any) -> Tree:
    """A rank of 100 MiB of parameters and 900 MiB of activations, of which ``extra`` bytes more are."""
    top = {"parameters": 100 * MIB, "activations": 900 * MIB + extra}
    moments = [
        moment("after forward", **top),
        moment("backward peak", **top, temporary=50 * MIB),
        moment("after step", parameters=100 * MIB),
    ]
    closure = [
        {"name": name, "bytes": size, "source": "storages"} for name, size in moments[1]["bytes"].items()
    ]
    timeline = [{"phase": "forward", "bytes": top}, {"phase": "backward", "bytes": moments[1]["bytes"]}]
    return {
        "rank": number, "device": device, "parameters": 100, "micro_batch": 4, "moments": moments,
        "layers": [{"name": "down.0", "bytes": 600 * MIB}, {"name": "up", "bytes": 300 * MIB}],
        "timeline": timeline, "closure": closure, "notes": [], **more,
    }  # fmt: skip


def anatomy(planned: list[Tree], measured: list[Tree], **more: Any) -> Tree:
    settings = {"model": "avatar", "parameters": 100, "world": max(len(planned), len(measured)), "zero": 1,
                "precision": "fp32", "checkpointing": "none", "offload": "none", "micro_batch": 4,
                "accumulation": 1}  # fmt: skip
    tree = {"schema": report.SCHEMA, "unit": "bytes", "run": settings, "planned": planned}
    return tree | {"measured": measured, "advice": [], **more}


GIB = {"bytes": 2**34, "source": "the machine's memory"}


# --- words ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "words"),
    [
        (
            anatomy([rank()], [rank(capacity=GIB, total={"bytes": 2**31, "source": "RSS"})]),
            "Peak 1,050.0 MiB planned, 1,050.0 MiB measured (the same), in backward; the process holds "
            "2,048.0 MiB of 16.0 GiB (the machine's memory): 14.0 GiB to spare.",
        ),
        (
            anatomy([rank(extra=10 * MIB)], [rank()]),
            "Peak 1,060.0 MiB planned, 1,050.0 MiB measured (the plan is 1.0 % high), in backward; the "
            "process holds 1,050.0 MiB.",
        ),
        (
            anatomy([rank(device="cuda")], []),
            "Peak 1,050.0 MiB planned, in backward; nvidia-smi will show 1,050.0 MiB: it fits a card of 24 "
            "GB with 21.0 GiB to spare.",
        ),
        (
            anatomy([rank(device="cuda", capacity={"bytes": 1000 * MIB, "source": "the card given"})], []),
            "Peak 1,050.0 MiB planned, in backward; nvidia-smi will show 1,050.0 MiB of 1,000.0 MiB (the "
            "card given): 50.0 MiB too much.",
        ),
        (
            anatomy([rank(device="cuda", extra=2**38)], []),
            "Peak 257.0 GiB planned, in backward; nvidia-smi will show 257.0 GiB: more than a card of 141 GB "
            "has.",
        ),
    ],
)  # fmt: skip
def test_the_verdict_is_a_sentence(tree: Tree, words: str) -> None:
    assert reading.verdict(tree) == words
    assert words.replace("'", "&#39;") in page(tree)


def test_out_of_memory_has_a_verdict_and_a_page_of_both_sides() -> None:
    full = rank(timeline=[], moments=[moment("out of memory", activations=5 * MIB)])
    tree = anatomy([rank()], [full], advice=["out of memory with micro batch 4"])
    full["capacity"] = {"bytes": 2**40, "source": "the machine's memory"}
    words = reading.verdict(tree)
    assert words.startswith("Peak 5.0 MiB measured, when memory ran out") and "to spare" not in words
    shown = page(tree)
    assert shown.index("<h2>Measured</h2>") < shown.index("<h2>Planned</h2>") and "against" not in shown
    assert "What would help most" in shown


@given(st.integers(-(2**45), 2**45), st.integers(0, 2))
def test_what_is_rounded_to_nothing_has_no_sign(size: int, digits: int) -> None:
    text = reading.mib(size, digits)
    assert not re.fullmatch(r"-0[.0]*", text)
    assert float(text.replace(",", "")) == pytest.approx(size / MIB, abs=0.51 * 10**-digits)


def test_noise_is_no_difference() -> None:
    """Half a thousandth of the whole, of a category too."""
    assert reading.error(100_000, 100_049) == reading.error(100_000, 99_951) == "="
    assert reading.error(100_000, 101_000) == "-1.0 %" and reading.error(5, 0) == "new"
    assert reading.error(0, 0) == "="
    near, far = rank(extra=MIB // 4), rank(extra=8 * MIB)
    shown = page(anatomy([near], [rank()]))
    assert "-0.0" not in shown and "+0.0" not in shown and "+0.2" not in shown
    assert '<td class="n">+8.0</td>' in page(anatomy([far], [rank()]))


@pytest.mark.parametrize("which", ["planned", "measured"])
def test_nothing_anywhere_is_a_page_too(which: str) -> None:
    empty = rank(layers=[], timeline=[{"phase": "forward", "bytes": {}}], closure=[])
    empty["moments"] = [moment("after forward"), moment("after step")]
    for capacity in ({}, {"capacity": {"bytes": 0, "source": "none"}}):
        both = [empty | capacity]
        tree = anatomy(both if which == "planned" else [], both)
        shown = page(tree)
        assert not re.search(r"\b(nan|inf)\b", shown)
        assert comparing.compared(tree, tree)["moments"] and comparison(tree, tree, "a", "b")
        assert not [value for _, value in report.scalars(tree) if value != value]


# --- advice -----------------------------------------------------------------------------------------------


def test_advice_is_the_devices_and_the_most_useful_first(config: Config, planner: advise.Planner) -> None:
    """Most bytes for the least slow-down; on a CPU nothing of bf16 and of what leaves a GPU."""
    on_gpu = report.savings(planner, config, 2)
    assert {"engine.precision bf16", "engine.offload optimizer"} <= {row["setting"] for row in on_gpu}
    worth = [row["saves"] / (5 + report._percent(row["slower"])) for row in on_gpu]
    assert worth == sorted(worth, reverse=True) and all(row["saves"] > 0 for row in on_gpu)
    cpu = advise.Planner(config, DATA, "cpu")
    on_cpu = report.savings(cpu, config, 2)
    assert on_cpu and {row["setting"].split()[0] for row in on_cpu} <= {"engine.zero", "engine.checkpointing"}
    tree = report.planned(config, [cpu.plan(config, 2)], advise.words(cpu, config, 2), None, on_cpu)
    assert [line.split(" saves")[0] for line in tree["advice"]] == [row["setting"] for row in on_cpu]
    assert "bf16" not in "".join(tree["advice"]) + page(tree) and "GPU since" not in page(tree)


def test_slow_downs_are_read_off_their_words() -> None:
    told = {change.slower: report._percent(change.slower) for change in advise.CHANGES}
    assert {0.0, 5.0, 10.0, 33.0, 50.0, 100.0} == set(told.values())


def test_advice_without_savings_is_shown_and_the_verdict_not_twice() -> None:
    lines = ["The plan of 9 MiB fits in 10 MiB.", "use <less>", "and less"]
    tree = anatomy([rank(device="cuda")], [], advice=lines)
    tree["run"]["strategy"] = "fsdp2"
    shown = page(tree)
    assert "<p>use &lt;less&gt;</p>" in shown and "<li>The plan of 9 MiB" in shown and "<li>and less" in shown
    assert "parameters, fsdp2, fp32" in shown and "ZeRO" not in shown
    known = rank(device="cuda", capacity={"bytes": 2**40, "source": "the card given"})
    assert "The plan of" not in page(anatomy([known], [], advice=lines))


def test_older_reports_on_a_cpu_advise_no_bf16_either() -> None:
    lines = ["engine.precision bf16 saves 59 MiB (41%); faster on any GPU", "engine.zero 1 saves 1 MiB (1%)"]
    shown = page(anatomy([rank()], [rank()], advice=lines))
    assert "engine.zero 1 saves" in shown and "bf16 saves" not in shown


# --- files ------------------------------------------------------------------------------------------------


def test_a_report_is_written_and_read_back(
    small: Plan, config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = report.planned(config, [small], ["use <less>"], 24 << 30)
    html = report.save(tmp_path, tree).read_text()
    assert report.load(tmp_path) == json.loads(json.dumps(tree))
    assert "use &lt;less&gt;" in html and "<less>" not in html
    assert "http" not in html.replace("http-equiv", "") and len(html) < 1_000_000
    assert "after forward" in (tmp_path / "memory.txt").read_text()
    assert reading.verdict(tree) in " ".join((tmp_path / "memory.txt").read_text().split())
    assert report.planned(config, [small], ["use <less>"], 24 << 30) == tree  # no clock in a plan
    tables.print_comparison(tree, tree, "run[lr=1e-4]", "x[/y]")
    said = " ".join(capsys.readouterr().out.split())
    assert "A is run[lr=1e-4], B is x[/y]. The peak planned goes from" in said
    other = json.loads(json.dumps(tree))
    other["planned"][0]["moments"] = [other["planned"][0]["moments"][0] | {"name": "out of memory"}]
    with pytest.raises(InputError, match="no moment in common"):
        tables.print_comparison(tree, other, "a", "b")
    (tmp_path / "anatomy.json").write_text(json.dumps({"schema": report.SCHEMA, "run": {}, "planned": []}))
    with pytest.raises(InputError, match="no measured and no advice"):
        report.load(tmp_path)
    (tmp_path / "anatomy.json").write_text('{"schema": "diffcore.anatomy/0"}')
    with pytest.raises(InputError, match=r"schema 'diffcore.anatomy/0' is not"):
        report.load(tmp_path)


@pytest.mark.parametrize(
    "row",
    [
        [9, 0, 1, 0, -1],
        [0, 9, 1, 0, -1],
        [0, 0, -1, 0, -1],
        [0, 0, 0, 0, -1],
        [0, 0, 1, 9, -1],
        [0, 0, 1, 2, 1],
        [0, 0, 1],
    ],
)
def test_tensors_of_no_step_are_refused(row: list[int], tmp_path: Path) -> None:
    told = {"categories": ["data"], "layers": [""], "phases": [{"name": "step", "end": 3}], "tensors": [row]}
    (tmp_path / "anatomy.json").write_text(json.dumps(anatomy([rank(lifetimes=told)], [])))
    with pytest.raises(InputError, match="lifetimes"):
        report.load(tmp_path)


def test_labels_cannot_break_out_of_the_page(small: Plan, config: Config) -> None:
    tree = report.planned(config, [small])
    one = tree["planned"][0]
    one["layers"][0]["name"] = one["closure"][0]["name"] = one["moments"][0]["name"] = "<b onload='x'>"
    one["lifetimes"]["layers"] = ["</title><b onload='x'>" for _ in one["lifetimes"]["layers"]]
    one["lifetimes"]["phases"][0]["name"] = one["notes"] = tree["run"]["model"] = "</svg><img src=x>"
    tree["run"]["name"] = tree["run"]["date"] = "<b onload='x'>"
    for html in (page(tree), comparison(tree, anatomy([rank()], []), "<b onload='x'>", "b")):
        assert "<b onload" not in html and "<img" not in html and "&lt;b onload" in html


def test_tensorboard_gets_a_handful() -> None:
    measured = rank(device="NVIDIA H200", total={"bytes": 3 * 2**30, "source": "NVML"})
    told = dict(report.scalars(anatomy([rank(extra=105 * MIB)], [measured])))
    assert told == {
        "memory/peak_planned_mib": 1155.0,
        "memory/peak_measured_mib": 1050.0,
        "memory/after_step_mib": 100.0,
        "memory/seen_by_the_system_mib": 3072.0,
        "memory/reserved_mib": 1051.0,
        "memory/error_of_the_peak": pytest.approx(0.1),
    }
    assert len(dict(report.scalars(anatomy([rank()], [])))) == 1


# --- the page ---------------------------------------------------------------------------------------------


def test_the_page_has_what_people_ask_for(small: Plan, config: Config) -> None:
    measured = [
        rank(n, "NVIDIA H200", n * MIB, capacity={"bytes": 2**37, "source": "NVML"}, notes=["noted"])
        for n in range(3)
    ]
    for one in measured:
        one["closure"] += [{"name": "residual", "bytes": -5 * MIB, "source": "difference"}]
        one["total"] = {"bytes": sum(row["bytes"] for row in one["closure"]), "source": "NVML"}
    tree = anatomy([rank(n) for n in range(3)], measured)
    tree["run"] |= {"name": "lr=3e-4", "date": "2026-11-28T02:03:04+00:00"}
    shown = page(tree)
    assert "<h1>Memory of lr=3e-4</h1>" in shown
    assert "2026-11-28 02:03 UTC · NVIDIA H200 · rank 2 of 3" in shown
    parts = [
        "Planned against measured",
        "Through one step, measured, rank 2",
        "What modules leave for backward, measured",
        "The sum, measured, rank 2",
        "Ranks side by side, measured",
        "Ranks side by side, planned",
        "Notes, measured",
    ]
    assert re.findall("<h2>(.*?)</h2>", shown) == parts
    assert "-5.0" in shown and "nvidia-smi shows" in shown and shown.count(">the largest<") == 1
    assert "fits a card" not in shown and "of 128.0 GiB" in shown
    drawn = page(report.planned(config, [small]))
    assert drawn.count('class="spot"') > 100 and "largest here" in drawn


def test_a_device_with_room_to_spare_is_not_told_to_save() -> None:
    saved = [{"setting": "engine.zero 2", "saves": 9 * MIB, "share": 0.1, "slower": "about 5 %"}]
    plenty, little = "It has room to spare; if it had to take less", "What would help most"
    for size, told in ((2**40, plenty), (2**30, little)):
        tree = anatomy([rank(capacity={"bytes": size, "source": "the card given"})], [], savings=saved)
        assert f"<h3>{told}</h3>" in page(tree)


def test_a_date_that_is_none_is_shown_as_it_is() -> None:
    tree = anatomy([rank()], [])
    tree["run"]["date"] = "yesterday"
    assert "yesterday · planned for a CPU" in page(tree)


def test_modules_lie_in_their_paths() -> None:
    top = tree([("up.0.conv", 30), ("up.0", 20), ("up.1", 10), ("network", 40), ("a.b.c", 0)])
    assert top.size == 100 and top.within["up"].size == 60 and top.within["up"].within["0"].own == 20
    nodes = {node.name: node for node in nodes_of(top, 100) if node.size}
    assert {name: node.size for name, node in nodes.items()} == {"up": 60, "network": 40}
    inside = {node.name: node for node in nodes["up"].within}
    assert {node.size for node in inside.values()} == {50, 10}
    assert [(node.name, node.size) for node in inside["0"].within] == [("itself", 20), ("conv", 30)]
    many = nodes_of(tree([("big", 10_000), *((f"m{i}", 1) for i in range(50))]), 10_050)
    assert [(node.name, node.size) for node in many] == [("big", 10_000), ("50 more", 50)]


def test_ranks_beyond_what_can_be_drawn_are_told() -> None:
    shown = page(anatomy([], [rank(n, extra=n * MIB) for n in range(200)]))
    assert "the 32 largest and the 32 smallest of 200 are drawn" in shown
    assert ">rank 0<" in shown and ">rank 199<" in shown and ">rank 100<" not in shown


# --- lives ------------------------------------------------------------------------------------------------

LIFE = st.tuples(st.integers(1, 10**6), st.integers(0, 5), st.sampled_from(["", "a", "a.b"]))
LIVES = st.lists(LIFE, max_size=30)


@given(LIVES, st.data())
def test_lives_are_the_streams_last_step(given_: list[tuple[int, int, str]], data: st.DataObject) -> None:
    """Against a walk through the events: what lives after each of them, and nothing of the step before."""
    stream, living = Stream(), list[int]()
    stream.mark("start")
    for step in range(2):
        for size, kind, layer in given_:
            living.append(stream.allocate(f"c{kind}", size, layer, host=kind == 5))
            for at in data.draw(st.lists(st.integers(0, 40), max_size=3)):
                if living:
                    stream.free(living.pop(at % len(living)))
        stream.mark("step")
        if not step:
            stream.mark("start")
    told = lifetimes(stream)
    assert told is not None
    zero = stream.marks[2][1]
    held: dict[int, int] = {}
    after: list[Counter[str]] = []
    for what, size in [(-1, 0), *stream.events]:
        if size:
            held[what] = size
        elif what >= 0:
            del held[what]
        sizes = Counter[str]()
        for number, its in held.items():
            if not stream.host[number]:
                sizes[stream.category[number]] += its
        after.append(sizes)
    for point in points(told, 10**9):
        assert +Counter(point.bytes) == +after[zero + point.at]
    highest = max((sum(sizes.values()) for sizes in after[zero:]), default=0)
    assert max(sum(point.bytes.values()) for point in points(told)) == highest
    assert len(points(told, 5)) <= 5
    assert sum(change.bytes for change in changes(told)) == sum(after[-1].values())


def marked(*names: str, size: int = 1) -> Tree:
    """Lives of a step with these phases, each of two events."""
    stream = Stream()
    stream.mark("start")
    for name in names:
        stream.brief("data", size)
        stream.mark(name)
    told = lifetimes(stream)
    assert told is not None
    return told


PLANNED = ("forward", "forward", "backward", "step")
MEASURED = ("forward", "backward", "forward", "backward", "step")


def test_phases_of_several_micro_batches_have_their_numbers() -> None:
    """As a plan marks them, and as a run does."""
    told = marked(*PLANNED)
    names = ["forward 1", "backward 1, forward 2", "backward 2", "step"]
    assert [phase["name"] for phase in told["phases"]] == names
    assert phase_at(told, 2) == "forward 1" and phase_at(told, 3) == "backward 1, forward 2"
    names = ["forward 1", "backward 1", "forward 2", "backward 2", "step"]
    assert [phase["name"] for phase in marked(*MEASURED)["phases"]] == names
    assert [phase["name"] for phase in marked("forward", "backward")["phases"]] == ["forward", "backward"]


def test_the_plan_is_drawn_over_the_measured_step_where_their_phases_meet() -> None:
    found, planned = (instants(rank(lifetimes=marked(*names))) for names in (MEASURED, PLANNED))
    line = _beside(found, planned)
    ends = {at: total for at, total in line if total == 0}
    assert {0, 2, 6, 8, 10} <= ends.keys() and len(line) == len(
        planned
    )  # forward 2 ends at 6 there, at 4 here
    assert [at for at, _ in line] == sorted(at for at, _ in line)
    three = instants(rank(lifetimes=marked(*PLANNED[:1], *PLANNED)))
    assert _beside(found, three) == []
    page_of = [rank(lifetimes=marked(*names)) for names in (PLANNED, MEASURED)]
    assert "dashed" in page(anatomy(page_of[:1], page_of[1:]))


def test_a_plans_lives_are_its_moments(small: Plan) -> None:
    assert small.stream is not None and changed(small, stream=None) == small
    told = lifetimes(small.stream)
    assert told is not None
    line = points(told)
    assert max(sum(point.bytes.values()) for point in line) == small.peak.allocated
    assert {k: v for k, v in small.moments[-1].bytes.items() if v} == line[-1].bytes
    assert [phase["name"] for phase in told["phases"]] == ["forward", "backward", "step"]
    assert phase_at(told, 0) == "forward" and phase_at(told, told["phases"][-1]["end"]) == "step"
    top = max(line, key=lambda point: sum(point.bytes.values()))
    assert top.largest and {category for _, category, _ in top.largest} <= top.bytes.keys()
    assert [size for _, _, size in top.largest] == sorted((size for _, _, size in top.largest), reverse=True)


# --- other programs' viewers ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def told(config: Config, small: Plan) -> Tree:
    return json.loads(json.dumps(report.planned(config, [small])))  # type: ignore[no-any-return]


def test_perfetto_gets_counters_phases_and_modules_in_each_other(told: Tree, small: Plan) -> None:
    rows = perfetto.trace(told)["traceEvents"]
    counters = [row for row in rows if row["ph"] == "C"]
    assert max(sum(row["args"].values()) for row in counters) == small.peak.allocated
    assert [row["ts"] for row in counters] == sorted({row["ts"] for row in counters})
    slices = [row for row in rows if row["ph"] == "X"]
    assert [row["name"] for row in slices if row["tid"] == perfetto.PHASES] == ["forward", "backward", "step"]
    modules = [(row["ts"], row["ts"] + row["dur"]) for row in slices if row["tid"] == perfetto.MODULES]
    assert len(modules) > 20
    for i, (begin, end) in enumerate(modules):  # one is in the other, or they do not touch
        for other, its_end in modules[:i]:
            assert end <= other or its_end <= begin or (other <= begin and end <= its_end) or (
                begin <= other and its_end <= end
            )  # fmt: skip
    without = copy.deepcopy(told)
    del without["planned"][0]["lifetimes"]
    rows = perfetto.trace(without)["traceEvents"]
    assert max(sum(row["args"].values()) for row in rows if row["ph"] == "C") == small.peak.allocated
    assert [row["name"] for row in rows if row["ph"] == "X"] == ["forward", "backward", "step"]


READ = {
    "PROTO", "FRAME", "STOP", "MARK", "MEMOIZE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET", "APPEND",
    "APPENDS", "LIST", "TUPLE", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NEWFALSE", "NEWTRUE", "NONE",
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "EMPTY_DICT", "EMPTY_LIST", "SETITEM", "SETITEMS",
    "DICT", "SHORT_BINUNICODE", "BINUNICODE",
}  # fmt: skip
"""Opcodes of a pickle that the page pytorch.org/memory_viz reads (torch/utils/viz/MemoryViz.js)."""


def test_torchs_viewer_reads_the_snapshot(told: Tree, small: Plan) -> None:
    data = memory_viz.pickled(told)
    assert {opcode.name for opcode, _, _ in pickletools.genops(data)} <= READ
    snapshot = pickle.loads(data)
    summary = viewer.segsum(snapshot)  # asserts itself that blocks and segments add up
    assert "total_allocated" in summary and "cudaMalloc" in viewer.trace(snapshot)
    assert "diffcore:0:parameters" in viewer.memory(snapshot, format_flamegraph=str)
    assert "base64" in viewer.trace_plot(snapshot)
    (events,) = snapshot["device_traces"]
    living, now, most = dict[int, int](), 0, 0
    for event in events:
        if event["action"] == "alloc":
            assert event["addr"] not in living
            living[event["addr"]] = event["size"]
            now += event["size"]
        elif event["action"] == "free_completed":
            now -= living.pop(event["addr"])
        most = max(most, now)
    assert most == small.peak.allocated and now == small.moments[-1].allocated
    at_the_end = {
        block["address"]: block["requested_size"]
        for segment in snapshot["segments"]
        for block in segment["blocks"]
        if block["state"] == "active_allocated"
    }
    assert at_the_end == living
    assert "unknown" in {event["category"] for event in events}  # else the page stops at its own mistake
    frames = {frame["name"] for event in events for frame in event["frames"]}
    assert {"activations", "forward", "planned, rank 0"} <= frames


def test_a_report_without_lives_is_not_exported_to_it() -> None:
    with pytest.raises(InputError, match="no tensor's life is in this report"):
        memory_viz.snapshot(anatomy([rank()], []))


@pytest.mark.parametrize("to", ["perfetto", "memory_viz"])
def test_the_command_writes_the_file(
    told: Tree, to: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "anatomy.json").write_text(json.dumps(told))
    out = tmp_path / "new" / "file"
    commands.main(["export", str(tmp_path), "--to", to, "--out", str(out)])
    assert str(out) in capsys.readouterr().out
    whole = json.loads(out.read_text()) if to == "perfetto" else pickle.loads(out.read_bytes())
    assert whole == (perfetto.trace(told) if to == "perfetto" else memory_viz.snapshot(told))


# --- two reports ------------------------------------------------------------------------------------------


def test_what_differs_comes_in_the_order_of_its_size(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = anatomy([rank()], [rank(extra=5 * MIB)])
    b = copy.deepcopy(a)
    b["run"] |= {"zero": 2, "name": "another", "date": "2026-11-28"}
    other = b["measured"][0]
    other["moments"][0]["bytes"] |= {"activations": 100 * MIB, "gradients": 30 * MIB}
    other["moments"][1]["bytes"]["parameters"] += 1000  # noise
    for one in other["moments"]:
        one["allocated"] = sum(one["bytes"].values())
    other["layers"] = [{"name": "up", "bytes": 300 * MIB}, {"name": "new", "bytes": 7 * MIB}]
    found = comparing.compared(a, b)
    assert found["settings"] == [{"setting": "zero", "a": 1, "b": 2}]
    assert [row["moment"] for row in found["moments"]] == ["after forward", "backward peak", "after step"]
    at = {"which": "measured", "moment": "after forward"}
    assert found["categories"] == [
        at | {"category": "activations", "a": 905 * MIB, "b": 100 * MIB},
        at | {"category": "gradients", "a": 0, "b": 30 * MIB},
    ]
    assert [(row["module"], row["b"] - row["a"]) for row in found["modules"]] == [
        ("down.0", -600 * MIB), ("new", 7 * MIB)
    ]  # fmt: skip
    for name, tree_ in (("a", a), ("b", b)):
        (tmp_path / f"{name}.json").write_text(json.dumps(tree_))
    out = tmp_path / "page.html"
    paths = [str(tmp_path / f"{name}.json") for name in "ab"]
    commands.main(["compare", *paths, "--out", str(out)])
    said = capsys.readouterr().out
    order = [said.index(word) for word in ("zero: 1 -> 2", "activations", "gradients", "down.0")]
    assert order == sorted(order)
    shown = out.read_text()
    assert shown.index("zero") < shown.index("-805.0") < shown.index("+30.0") < shown.index("-600.0")
    commands.main(["compare", *paths, "--json"])
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(found))


def test_the_same_report_twice_does_not_differ(capsys: pytest.CaptureFixture[str]) -> None:
    same = anatomy([rank()], [])
    tables.print_comparison(same, same, "a", "b")
    assert "nothing differs" in capsys.readouterr().out
    assert "Nothing else differs" in comparison(same, same, "a", "b")
    assert comparing.side(same, anatomy([], [rank()])) is None
    told = comparing.sentence(same, anatomy([], [rank()]))
    assert told == "One is planned alone, the other measured alone."
