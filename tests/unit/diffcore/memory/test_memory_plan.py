"""The memory plan: closed forms, the allocator's rules, traces, commands. Against DeepSpeed itself:
tests/integration/test_memory.py."""

from __future__ import annotations

import random
from dataclasses import replace as changed
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.offload import OFFLOADS
from diffcore.config.tree import Config
from diffcore.engine.staging import SETS
from diffcore.memory import __main__ as commands
from diffcore.memory import advise, report
from diffcore.memory.calibration import capacity
from diffcore.memory.planning.allocator import ROUND, CachingAllocator, rounded, segment
from diffcore.memory.planning.plan import MOMENTS, Data, Plan, between, plan, trace_quietly
from diffcore.memory.planning.recording import Event, Kind, Parameter, Recorder, Trace
from diffcore.memory.planning.replay import replay
from diffcore.memory.planning.states import Sharing, resident, totals
from shards.schema import CARTOON_SET

DATA = Data(tuple(CARTOON_SET), 16)
SHARING = Sharing(1, 2, 0, 2, 1, False, 1000, False, True, 1000, 10, 10**9, 10**9)


@pytest.fixture(scope="module")
def config(memory_config: Path) -> Config:
    return configure.load(memory_config)


@pytest.fixture(scope="module")
def traced(config: Config) -> Trace:
    return trace_quietly(config, DATA, 4)


@pytest.fixture(scope="module")
def small(config: Config, traced: Trace) -> Plan:
    return plan(config, 2, data=DATA, traced=traced)


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_a_run_in_stages_is_planned_by_its_largest_images(config: Config, device: str) -> None:
    """What waits on a GPU is as packed, whatever the stage."""
    stages = [{"side": 4, "until": 3}, {"side": 8, "until": 7}]

    def planned(steps: int, stages: list[dict[str, int]], size: int = 16) -> Plan:
        data = Data(DATA.schema, size)
        there = configure.replace(config, "train", {"steps": steps, "stages": stages})
        planner = advise.Planner(there, data, device)
        return planner.with_stages(planner.plan(there, 2), there)

    plain, whole = planned(9, []), planned(9, stages)
    assert whole.moments == plain.moments and not plain.notes
    within, alone = planned(7, stages), planned(7, [], size=8)
    for here, there in zip(within.moments, alone.moments, strict=True):
        waits = here.allocated - there.allocated
        assert waits == (SETS * within.micro * 3 * (16**2 - 8**2) if device == "cuda" else 0)
    peaks = [planned(steps, stages).peak.allocated / 2**20 for steps in (3, 7)]
    assert list(whole.notes) == [
        f"to step 3, with images of 4 x 4, the peak is {peaks[0]:,.1f} MiB",
        f"to step 7, with images of 8 x 8, the peak is {peaks[1]:,.1f} MiB",
    ]
    assert peaks[0] < peaks[1] < whole.peak.allocated / 2**20
    with pytest.raises(InputError, match=r"stages\.0\.side: 10; allowed with images of 64"):
        Data.of(configure.replace(config, "train", {"stages": [{"side": 10, "until": 2}]}))


@given(
    numels=st.lists(st.integers(1, 50), min_size=1, max_size=12),
    world=st.sampled_from([1, 2, 3, 8, 64]),
    stage=st.sampled_from([1, 2]),
)
def test_flat_partitions_cover_every_element_once(numels: list[int], world: int, stage: int) -> None:
    sharing = changed(SHARING, stage=stage, world=world)
    flat, share = sharing.flat(numels), sharing.partition(numels)
    assert flat == share * world and flat % (2 * world) == 0 and 0 <= flat - sum(numels) < 2 * world
    ranks = [changed(sharing, rank=rank) for rank in range(world)]
    for number, pieces in enumerate(sharing.slices(numels)):
        assert [owner for owner, _ in pieces] == [r.rank for r in ranks if number in r.mine(numels)]
        assert sum(size for _, size in pieces) == numels[number] and all(size > 0 for _, size in pieces)


@pytest.mark.parametrize(
    ("stage", "itemsize", "world", "bytes_a_parameter"),
    [(0, 4, 1, 12), (1, 2, 2, 8), (2, 2, 2, 8), (1, 4, 2, 10), (1, 2, 1024, 2), (3, 2, 8, 2)],
)
def test_states_in_bytes_a_parameter(stage: int, itemsize: int, world: int, bytes_a_parameter: float) -> None:
    """2 + 12 / N under ZeRO-1 and 2 in bf16, 4 + 12 / N in fp32, 16 / N with gradients under ZeRO-3."""
    numels = [4096 * 1024] * 4
    sharing = changed(SHARING, stage=stage, itemsize=itemsize, world=world)
    held = totals(resident(sharing, numels))
    found = sum(held[c] for c in ("parameters", "masters", "optimizer", "gradients")) / sum(numels)
    assert found == pytest.approx(bytes_a_parameter, rel=0.01)
    assert held["ema"] == 4 * sum(numels) // (world if stage else 1)


def test_the_optimizer_leaves_the_device_when_it_is_offloaded() -> None:
    blocks = resident(changed(SHARING, offload=True), [1000, 2000])
    assert totals(blocks)["optimizer"] == totals(blocks)["masters"] == 0
    host = totals(blocks, host=True)
    assert host["optimizer"] == 2 * 4 * 1500 + 4 and host["gradients"] == 4 * 1500
    # Of DeepSpeed's: the partition in compute precision, and room for the largest gradient on both sides.
    assert host["buckets"] == 2 * 1500 + 2 * 2000 and totals(blocks)["buckets"] == 2 * 2000


@pytest.mark.parametrize(("copies", "peak"), [({2: 0}, 132), ({}, 148)])
def test_a_gradient_that_is_added_to_another_is_not_copied(copies: dict[int, int], peak: int) -> None:
    """Two micro batches: an activation of 100 bytes, a gradient of 16 and autograd's copy of it."""
    events = [(Kind.ALLOCATE, 0, 100), (Kind.TURN, 0, 0), (Kind.ALLOCATE, 1, 16), (Kind.ALLOCATE, 2, 16)]
    events += [(Kind.GRADIENT, 0, 2), (Kind.FREE, 1, 0), (Kind.FREE, 0, 0)]
    trace = Trace(1, torch.float32, [Parameter("weight", (4,))], 0, 0, [Event(*e) for e in events], [""] * 3)
    trace.copies = copies
    stream = replay(trace, changed(SHARING, stage=0, world=1, accumulation=2))
    begin = [at for phase, at in stream.marks if phase == "start"][-1]  # Adam's moments are there by then
    sizes, held, most = dict(e for e in stream.events if e[1]), 0, 0
    for number, size in stream.events[begin:]:
        held += size or -sizes[number]
        most = max(most, held)
    assert (most, held) == (peak, 0)


@pytest.mark.parametrize(("bucket", "most"), [(2, 32), (9, 16)])
def test_a_large_gradient_is_copied_on_its_way_to_the_host(bucket: int, most: int) -> None:
    """DeepSpeed clones one above the bucket's size while autograd holds the original (stage_1_and_2.py)."""
    events = [(Kind.ALLOCATE, 0, 100), (Kind.TURN, 0, 0), (Kind.ALLOCATE, 1, 16), (Kind.GRADIENT, 0, 1)]
    events += [(Kind.FREE, 0, 0)]
    trace = Trace(1, torch.float32, [Parameter("weight", (4,))], 0, 0, [Event(*e) for e in events], [""] * 2)
    sharing = changed(SHARING, stage=2, world=1, itemsize=4, offload=True, bucket=bucket)
    stream = replay(trace, sharing)
    begin, end = ([at for phase, at in stream.marks if phase == name][-1] for name in ("forward", "backward"))
    sizes, held, found = dict(event for event in stream.events if event[1]), 0, 0
    for number, size in stream.events[begin:end]:
        if stream.category[number] == "gradients":
            held += size or -sizes[number]
            found = max(found, held)
    assert (found, held) == (most, 0)


@pytest.mark.parametrize("stage", [2, 3])
def test_communication_that_overlaps_has_a_stream_of_its_own(traced: Trace, stage: int) -> None:
    alone, beside = (replay(traced, changed(SHARING, stage=stage, overlap=o)) for o in (False, True))
    assert set(alone.lane) == {0}
    on_its_own = {c for c, lane in zip(beside.category, beside.lane, strict=True) if lane}
    assert "buckets" in on_its_own and not on_its_own & {"activations", "masters", "optimizer"}


def test_sizes_of_the_caching_allocator() -> None:
    mib = 2**20
    assert [rounded(n) for n in (1, 512, 513)] == [512, 512, 1024]
    assert [segment(n) for n in (512, mib, mib + 512, 10 * mib, 21 * mib + 1)] == [
        2 * mib, 2 * mib, 20 * mib, 10 * mib, 22 * mib,
    ]  # fmt: skip
    allocator = CachingAllocator()
    allocator.allocate(0, 3 * mib)
    allocator.allocate(1, 3 * mib)  # from the rest of the first one's 20 MiB
    assert (allocator.allocated, allocator.reserved) == (6 * mib, 20 * mib)
    allocator.release(0)
    allocator.allocate(2, 4 * mib)  # the hole of 3 MiB is too small
    allocator.allocate(3, 2 * mib)  # and this one fills it best
    assert allocator.reserved == 20 * mib
    for number in (1, 2, 3):
        allocator.release(number)
    allocator.allocate(4, 20 * mib)  # the parts have joined again
    assert (allocator.allocated, allocator.reserved) == (20 * mib, 20 * mib)
    allocator.release(4)
    allocator.allocate(5, mib, lane=1)  # what one stream has freed is of no use to another
    assert (allocator.allocated, allocator.reserved) == (mib, 22 * mib)


@settings(max_examples=25)
@given(st.lists(st.integers(1, 30 << 20), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_an_allocator_hands_out_what_is_asked_and_takes_all_back(
    sizes: list[int], order: random.Random
) -> None:
    allocator, held = CachingAllocator(), {}
    for number, size in enumerate(sizes):
        allocator.allocate(number, size)
        held[number] = size
        if order.random() < 0.4:
            gone = order.choice(list(held))
            allocator.release(gone)
            del held[gone]
        asked = sum(rounded(size) for size in held.values())
        # A block that is hardly larger than asked is not split.
        assert asked <= allocator.allocated <= asked + len(held) * (1 << 20)
        assert allocator.reserved >= allocator.allocated and allocator.reserved % (2 << 20) == 0
    for number in held:
        allocator.release(number)
    assert allocator.allocated == 0 and ROUND == 512


@pytest.mark.slow
def test_sizes_are_affine_in_the_micro_batch(config: Config, traced: Trace) -> None:
    low, high = (trace_quietly(config, DATA, micro) for micro in (2, 3))
    scaled = between(low, high, traced.micro)
    assert scaled is not None and scaled.events == traced.events and scaled.inputs == traced.inputs


@pytest.mark.parametrize("world", [1, 4, 1024])
@pytest.mark.parametrize(("stage", "offload"), [(s, o) for o in OFFLOADS for s in OFFLOADS[o].stages])
def test_every_step_frees_what_it_allocates(traced: Trace, stage: int, world: int, offload: str) -> None:
    gone = {"offload": offload != "none", "offload_parameters": offload == "parameters"}
    sharing = changed(SHARING, stage=stage, world=world, accumulation=2, **gone)
    stream = replay(traced, sharing, steps=2)
    held: dict[int, int] = {}
    after = []
    ends = {end for name, end in stream.marks if name == "step"}
    for number, (what, size) in enumerate(stream.events, 1):
        if size:
            assert what not in held
            held[what] = size
        else:
            del held[what]  # KeyError: freed twice
        if number in ends:
            after.append(sum(held.values()))
    assert len(after) == 2 and after[0] == after[1]


def test_a_plan_has_its_moments_and_its_sum_closes(small: Plan) -> None:
    assert [moment.name for moment in small.moments] == list(MOMENTS)
    _, forward, backward, step, after = small.moments
    assert backward.allocated >= forward.allocated > after.allocated
    assert step.allocated >= after.allocated and small.gradients > 0
    tree = report.as_json(small)
    assert sum(row["bytes"] for row in tree["closure"]) == small.smi > small.reserved >= small.peak.allocated
    assert sum(layer["bytes"] for layer in tree["layers"]) == forward.bytes["activations"]


@pytest.mark.slow
def test_checkpointing_takes_less_and_bf16_half(config: Config, small: Plan) -> None:
    def activations(**engine: object) -> int:
        changed_config = configure.replace(config, "engine", engine)
        return plan(changed_config, 2, data=DATA).moments[1].bytes["activations"]

    plain = small.moments[1].bytes["activations"]
    assert activations(checkpointing="full") < 0.6 * plain
    assert 0.45 * plain < activations(precision="bf16") < 0.6 * plain


def test_autocast_keeps_the_weights_and_norms_in_fp32(config: Config, small: Plan) -> None:
    """bf16 under ZeRO-0: fp32 states, and on CUDA more than half of fp32's activations, unlike on the CPU."""
    changed_config = configure.replace(config, "engine", {"zero": 0, "precision": "bf16"})
    cuda, cpu = (plan(changed_config, 2, device=device, data=DATA) for device in ("cuda", "cpu"))
    after = cuda.moments[-1].bytes
    assert after["parameters"] == 4 * cuda.parameters and after["masters"] == 0
    plain = small.moments[1].bytes["activations"]
    on_cuda, on_cpu = (p.moments[1].bytes["activations"] for p in (cuda, cpu))
    assert 0.45 * plain < on_cpu < 0.6 * plain < on_cuda < plain


def test_on_the_cpu_host_and_device_are_one_memory(config: Config) -> None:
    changed_config = configure.replace(config, "engine", {"zero": 3, "offload": "optimizer"})
    cuda, cpu = (plan(changed_config, 2, device=device, data=DATA) for device in ("cuda", "cpu"))
    last, of_cpu = cuda.moments[-1], cpu.moments[-1]
    assert of_cpu.host == 0 and last.host > 0
    assert of_cpu.allocated == last.allocated + last.host - staged_bytes(cuda)


def staged_bytes(of: Plan) -> int:
    """Two sets of pixels, labels and positions."""
    return SETS * of.micro * (DATA.size**2 * 3 + 8 * len(DATA.schema) + 8)


def test_samples_wait_on_the_gpu_where_they_are_made_there(config: Config) -> None:
    def data(draws: int, device: str) -> int:
        changed_config = configure.replace(config, "diffusion", {"draws": draws})
        return plan(changed_config, 2, device=device, data=DATA).moments[-1].bytes["data"]

    assert data(2, "cuda") - data(1, "cuda") == staged_bytes(plan(config, 2, data=DATA))
    assert data(2, "cpu") == data(1, "cpu") == data(1, "cuda")


@pytest.mark.parametrize("world", [1, 2])
def test_offloaded_parameters_are_on_the_device_only_while_they_are_used(traced: Trace, world: int) -> None:
    offloaded = changed(SHARING, stage=3, world=world, offload=True, offload_parameters=True)
    sharing = changed(offloaded, persist=0, reuse=0, prefetch=0)
    stream = replay(traced, sharing, steps=1)
    numels = [parameter.numel for parameter in traced.parameters]
    at_rest = totals(resident(sharing, numels)), totals(resident(sharing, numels), host=True)
    assert at_rest[0]["parameters"] == 0
    assert at_rest[1]["parameters"] == sharing.partition(numels) * sharing.itemsize
    lifted = {n for n, c in enumerate(stream.category) if c == "parameters" and not stream.host[n]}
    sizes, held, most = dict(e for e in stream.events if e[1]), 0, 0
    for number, size in stream.events:
        if number in lifted:
            held += size or -sizes[number]
            most = max(most, held)
    assert 0 < most < sum(numels) * sharing.itemsize and held == 0


def test_gloo_scatters_a_copy(traced: Trace) -> None:
    """Over gloo ZeRO-3's gradients are reduced in a copy, as large as what is sent."""
    nccl, gloo = (replay(traced, changed(SHARING, stage=3, cpu=cpu), steps=1) for cpu in (False, True))
    sent, with_copies = (s.category.count("buckets") for s in (nccl, gloo))
    assert 0 < sent < with_copies and nccl.category.count("parameters") == gloo.category.count("parameters")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["nothing"], "unknown command 'nothing'"),
        (
            ["plan", "--config", "CONFIG", "--world", "0"],
            "--world: '0': allowed are whole numbers",
        ),
        (["plan", "--config", "CONFIG", "--rank", "1"], "rank 1 is not one of 1 ranks"),
        (["plan", "--config", "CONFIG", "--check"], "--check needs --gpu,"),
        (
            ["plan", "--config", "CONFIG", "--table", "--gpu-memory", "24"],
            "--gpu does not go with --table",
        ),
        (["plan", "--config", "CONFIG", "--calibration", "24GB"], "no GPU of that name was measured"),
        (["plan", "--config", "CONFIG", "--gpu-memory", "big"], "write it as 24GB"),
        (["plan", "--config", "CONFIG", "--world", "3"], "is not micro x accumulation x world"),
        (["plan", "--config", "CONFIG", "--modle.heads", "3"], "did you mean --model.heads"),
        (["compare", "CONFIG", "CONFIG"], "not a JSON file"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], says: str, memory_config: Path) -> None:
    with pytest.raises(InputError, match=says):
        commands.main([str(memory_config) if argument == "CONFIG" else argument for argument in arguments])


def test_check_says_whether_it_fits(memory_config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan_it = ["plan", "--config", str(memory_config), "--micro-batch", "512", "--check", "--gpu-memory"]
    commands.main([*plan_it, "80GB"])
    said = capsys.readouterr()
    assert said.out.startswith("fits: ") and "64 x 64 pixels are assumed" in said.err
    sizes = [capacity(size) for size in (2, 16, 24, 40, 48, 80, 94, 141)]
    assert sizes == sorted(sizes) and capacity(24) < 24e9 and capacity(2) < 2e9


def test_adam_takes_what_activations_have_left(config: Config, traced: Trace) -> None:
    """Under ZeRO-0 the first step makes its moments, when forward and backward have filled the allocator."""
    stream = replay(traced, changed(SHARING, stage=0, world=1))
    first = stream.category.index("optimizer")
    begins = next(at for at, (number, _) in enumerate(stream.events) if number == first)
    assert next(at for phase, at in stream.marks if phase == "backward") == begins


@pytest.mark.slow
def test_the_largest_batch_is_of_those_that_are_tried(config: Config) -> None:
    planner = advise.Planner(config, DATA)
    assert planner.largest(config, 1, 10**15) == advise.MOST


@pytest.mark.parametrize(
    ("of_x", "of_weight"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16)],
)
@pytest.mark.parametrize("norm", ["layer", "group"])
def test_what_norms_keep_is_as_large_as_in_a_run(
    norm: str, of_x: torch.dtype, of_weight: torch.dtype
) -> None:
    """Fake tensors know nothing of a mean and a deviation in fp32."""

    def run() -> tuple[torch.Tensor, ...]:
        x, weight = torch.ones(2, 8, dtype=of_x), torch.ones(8, dtype=of_weight)
        if norm == "layer":
            return torch.native_layer_norm(x, [8], weight, weight, 1e-5)
        return torch.native_group_norm(x, weight, weight, 2, 8, 1, 2, 1e-5)

    trace = Trace(2, of_weight, [], 0, 0)
    with FakeTensorMode(), Recorder(trace, cuda=False):
        kept = run()
    sizes = {event.what: event.size for event in trace.events if event.kind == Kind.ALLOCATE}
    assert list(sizes.values())[2:] == [tensor.nbytes for tensor in run()]
    del kept
