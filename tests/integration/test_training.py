"""Training under real DeepSpeed with real processes, against a plain PyTorch loop and against itself."""

from __future__ import annotations

import contextlib
import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from benchmarks.kill_training import Ranks
from diffbase import cli, exits, ledger
from diffcore.config import configure
from diffcore.config.samplers import SAMPLERS
from diffcore.runs import checkpoint
from diffcore.runs.stored.record import read_state
from tests.integration.conftest import Train, refused, train_all
from tests.support import numerics
from tests.support.numerics import assert_near, assert_same, plain_loop, saved

CELLS = numerics.cells(ranks=2)
STEPS = numerics.STEPS
CHOSEN: dict[str, Any] = {"diffusion": {"draws": 2}, "data": {"order": "full"}}
"""What a run chooses where its config leaves it open, and keeps."""
BROKEN = {
    numerics.Cell(1, "fp32", 4): 1.001,
    # Of bf16's eight digits 1.001 is less than half a unit in the last: such a product is the number itself.
    numerics.Cell(1, "bf16", 2): 1.01,
    numerics.Cell(0, "fp16", 2): 1.001,
}
"""Cells that are trained once more with a fault: one gradient times this."""


@pytest.fixture(scope="module")
def trained(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step and on to ten of every stage and precision, all in one pair of processes."""
    folder = tmp_path_factory.mktemp("cells")
    paths = [str(numerics.write(folder, packed, cell, steps)) for cell in CELLS for steps in (1, STEPS)]
    for cell, factor in BROKEN.items():
        paths.append(f"{numerics.write(folder, packed, cell, 1, f'{cell}-broken')}*{factor}")
    train_all(paths, ranks=2)
    return folder


@pytest.mark.numeric
@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_two_ranks_learn_what_a_plain_loop_learns(cell: numerics.Cell, trained: Path) -> None:
    found = numerics.compare(trained, cell, 2, STEPS)
    assert not numerics.faults(found), found


@pytest.mark.numeric
@pytest.mark.parametrize("cell", BROKEN, ids=str)
def test_a_gradient_that_is_a_thousandth_off_is_seen(cell: numerics.Cell, trained: Path) -> None:
    wanted = plain_loop(trained / "small.yaml", 1, cell.sums(2), warmed=True)
    got, start = (
        numerics.recorded(trained / f"{cell}-broken"),
        plain_loop(trained / "small.yaml", numerics.WARM)["weights"],
    )
    lines = numerics.faults({"first": numerics.distance(got, wanted, start)})
    assert any("optimizer_apart" in line for line in lines)


@pytest.mark.numeric
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(train: Train, small: Path) -> None:
    run_folder = small.parent / "run"
    train("--train.steps", "2")
    resumed = train()
    assert "from step 2" in resumed.out
    two_sittings = saved(run_folder)
    run_folder.rename(small.parent / "first")
    train()
    one_sitting = saved(run_folder)
    assert_same(two_sittings, one_sitting)
    steps = [json.loads(line)["step"] for line in (small.parent / "first" / "metrics.jsonl").open()]
    assert steps == [1, 2, 3, 4]
    begun, resumed_cost = (read_state(folder).spent for folder in checkpoint.complete(small.parent / "first"))
    whole = read_state(checkpoint.complete(run_folder)[-1]).spent
    for what in ("images", "flops"):
        assert 0 < 2 * begun[what] == resumed_cost[what] == whole[what]
    assert 0 < begun["cpu_seconds"] < resumed_cost["cpu_seconds"]


def test_ranks_that_hold_all_read_a_part_each_and_hear_of_the_others_damage(
    train: Train, small: Path
) -> None:
    """Under ZeRO-0: the older checkpoint is taken up by both, and nothing is lost but the steps since."""
    run_folder, alike = small.parent / "run", ("--engine.zero", "0")
    train("--train.steps", "6", *alike, ranks=2)
    wanted = saved(run_folder)
    run_folder.rename(small.parent / "whole")
    train("--train.steps", "4", *alike, ranks=2)
    [shard] = checkpoint.complete(run_folder)[-1].glob("shard-*")
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1  # the last weight's, which rank 1 reads
    shard.write_bytes(data)
    resumed = train("--train.steps", "6", *alike, ranks=2)
    assert "from step 2" in resumed.out and "do not have the sha256 that COMPLETE says" in resumed.out
    found = saved(run_folder)
    assert_same(found, wanted)


def test_where_checkpoints_come_by_time_changes_no_number(train: Train, small: Path) -> None:
    """Not on two ranks, not over a resume, and not where validations cut the learning rate."""
    run_folder = small.parent / "run"
    validated = ("--validation.every", "10", "--lr_schedule.plateau_patience", "1", "--train.log_every", "5")
    train("--train.steps", "40", "--train.checkpoint_every", "1000", *validated, ranks=2)
    wanted = saved(run_folder)
    run_folder.rename(small.parent / "by steps")
    by_time = ("--train.checkpoint_every", "0.1s", "--train.keep_checkpoints", "100", *validated)
    train("--train.steps", "20", *by_time, ranks=2)
    assert "from step 20" in train("--train.steps", "40", *by_time, ranks=2).out
    found = saved(run_folder)
    assert_same(found, wanted)
    steps = [checkpoint.step_of(folder) for folder in checkpoint.complete(run_folder)]
    assert {10, 20, 30, 40} <= set(steps) and [step for step in steps if step % 10]


@pytest.mark.numeric
def test_a_run_from_before_versions_of_draws_goes_on_with_its_own(train: Train, small: Path) -> None:
    """Bit for bit, by the command that began it; the newest draws would make another run of it."""
    run_folder, first = small.parent / "run", ("--diffusion.draws", "1")
    train("--train.steps", "2", *first)
    record = json.loads((run_folder / "run.json").read_text())
    del record["identity"]["diffusion.draws"]
    (run_folder / "run.json").write_text(json.dumps(record))
    assert "from step 2" in train().out
    found = saved(run_folder)["weights"]
    wanted = {}
    for version in ("1", "2"):
        run_folder.rename(small.parent / f"before-{version}")
        train("--diffusion.draws", version)
        wanted[version] = saved(run_folder)["weights"]
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted["1"].items())
    assert not any(
        torch.equal(found[name], tensor) for name, tensor in wanted["2"].items() if tensor.dim() > 1
    )


@pytest.mark.parametrize(
    ("before", "after"), [((2, 1), (1, 3)), ((1, 0), (2, 2)), ((2, 3), (1, 1)), ((2, 2), (2, 0))]
)
def test_a_run_goes_on_at_another_world_size_and_stage(
    before: tuple[int, int], after: tuple[int, int], train: Train, small: Path
) -> None:
    train("--train.steps", "2", "--engine.zero", str(before[1]), ranks=before[0])
    resumed = train("--engine.zero", str(after[1]), ranks=after[0])
    assert "from step 2" in resumed.out
    assert_near(saved(small.parent / "run"), plain_loop(small, 4), rtol=1e-4)


def test_a_run_folder_holds_what_is_needed(train: Train, small: Path) -> None:
    train("--sampling.every", "2", "--memory.trace", "true", ranks=2, launcher=True)
    folder = small.parent / "run"
    assert configure.load(folder / "config.yaml") == configure.load(
        small, {"sampling": {"every": 2}, "memory": {"trace": True}} | CHOSEN
    )
    names = sorted(p.name for p in (folder / "samples").iterdir())
    assert names == [
        *("ema-00000002.png", "ema-00000004.png", "labels.json"),
        *("raw-00000002.png", "raw-00000004.png", "real.png"),
    ]
    assert [p.name for p in checkpoint.complete(folder)] == ["step-00000002", "step-00000004"]

    board = EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    parts = {
        f"time/{part}_ms" for part in ("data", "forward", "communication", "backward", "optimizer", "ema")
    }
    assert {"train/loss", "train/learning_rate", "train/gradient_norm"} | parts <= set(
        board.Tags()["scalars"]
    )
    assert [event.step for event in board.Scalars("train/loss")] == [1, 2, 3, 4]
    assert [tag for tag in sorted(board.Tags()["scalars"]) if tag.startswith("memory")] == [
        "memory/after_step_mib",
        "memory/error_of_the_peak",
        "memory/peak_measured_mib",
        "memory/peak_planned_mib",
        "memory/process_mib",
        "memory/seen_by_the_system_mib",
    ]
    assert {"samples/real", "samples/raw", "samples/ema"} == set(board.Tags()["images"])
    assert {"config/text_summary", "samples/labels/text_summary"} <= set(board.Tags()["tensors"])

    report = json.loads((folder / "anatomy.json").read_text())
    count = sum(t.numel() for t in saved(folder)["weights"].values())
    assert report["schema"] == "diffcore.anatomy/1"
    assert [rank["rank"] for rank in report["measured"]] == [0, 1]
    for rank, planned in zip(report["measured"], report["planned"], strict=True):
        _, forward, backward, step, after = (m["bytes"] for m in rank["moments"])
        assert rank["parameters"] == count
        assert 4 * count <= forward["parameters"] <= 4 * count + 64  # a flat buffer, padded
        assert forward["activations"] > 100 * after["activations"]
        # ZeRO-1 over two ranks: a half of the fp32 master and of two moments, padded to equal shares
        assert 2 * count <= forward["masters"] <= 2 * count + 4096
        assert 4 * count <= forward["optimizer"] <= 4 * count + 4096
        assert 2 * count <= forward["ema"] <= 2 * count + 4096  # a half of the average too
        assert backward["buckets"] > 0 and step["gradients"] >= 2 * count
        assert sum(row["bytes"] for row in rank["closure"]) == rank["total"]["bytes"]
        for name in ("parameters", "masters", "optimizer", "ema"):
            assert [m["bytes"][name] for m in rank["moments"]] == [
                m["bytes"][name] for m in planned["moments"]
            ]
    assert "activations" in (folder / "memory.txt").read_text()
    assert "Planned against measured" in (folder / "report.html").read_text()


def sample(small: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of ``python -m diffcore.sample``, without another process's imports."""
    from diffcore import sample

    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err):
        try:
            cli.run(lambda: sample.main(["--run", str(small.parent / "run"), *arguments]))
        except SystemExit as left:
            code = int(left.code or 0)
    return code, err.getvalue()


def test_sampling_draws_what_is_set(train: Train, small: Path, tmp_path: Path) -> None:
    train("--train.steps", "1")
    out = tmp_path / "grid.png"
    arguments = [
        "--set",
        "hair_color=3",
        "--set",
        "glasses=11",
        "--count",
        "5",
        "--seed",
        "7",
        "--guidance",
        "2",
    ]
    assert sample(small, *arguments, "--out", str(out)) == (0, "")
    record = json.loads(out.with_suffix(".json").read_text())
    cells = [cell["attributes"] for cell in record["cells"]]
    assert (
        len(cells) == 5 and {c["hair_color"] for c in cells} == {3} and {c["glasses"] for c in cells} == {11}
    )
    assert len({c["hair"] for c in cells}) > 1 and len(cells[0]) == 18
    assert {(c["weights"], c["guidance"]) for c in record["cells"]} == {("ema", 2.0)}
    four = tmp_path / "four.png"
    finer = ["--guidance-interval", "0.2", "0.8", "--guidance-rescale", "0.5", "--eta", "1", "--no-clamp"]
    assert sample(small, *arguments, *finer, "--compare", "--out", str(four)) == (0, "")
    record = json.loads(four.with_suffix(".json").read_text())
    assert (record["guidance_interval"], record["guidance_rescale"]) == ([0.2, 0.8], 0.5)
    assert (record["eta"], record["clamp"]) == (1, False)
    rows = [(c["row"], c["weights"], c["guidance"]) for c in record["cells"]]
    assert rows[::5] == [(0, "raw", 1.0), (1, "raw", 2.0), (2, "ema", 1.0), (3, "ema", 2.0)]
    again = tmp_path / "again.png"
    sample(small, *arguments, "--out", str(again))
    assert again.read_bytes() == out.read_bytes()

    names = list(SAMPLERS)
    for bad, words in {
        ("--set", "hat=1"): "unknown attribute 'hat'; allowed: eye_angle",
        ("--set", "hair_color=10"): "hair_color must be a whole number, 0 to 9",
        ("--steps", "101"): "sampling.steps 101",
        ("--sampler", "heun", "--eta", "1"): "eta 1.0 is for sampler ddim, not heun",
        ("--guidance", "-1"): "greater than or equal to 0",
        ("--sampler", "none"): f"{', '.join(map(repr, names[:-1]))} or {names[-1]!r}",
    }.items():
        code, err = sample(small, *bad, "--out", str(tmp_path / "bad.png"))
        assert code == 2 and words in err and err.startswith("error: ") and err.count("\n") == 1
    assert not (tmp_path / "bad.png").exists()


@pytest.mark.numeric
def test_an_image_does_not_depend_on_its_batch(train: Train, small: Path) -> None:
    train("--train.steps", "1")
    from diffcore.runs.draw import choose_labels
    from diffcore.runs.model import load_model as load_run

    model = load_run(small.parent / "run")
    labels_BA = choose_labels(model.schema, {}, seed=1, count=7)
    one = model.draw(labels_BA, model.config.sampling, seed=5, batch=1)
    three = model.draw(labels_BA, model.config.sampling, seed=5, batch=3)
    assert np.abs(one.astype(int) - three.astype(int)).max() <= 1  # kernels differ in the last bit by batch


def test_bad_input_is_one_line_and_leaves_nothing(train: Train, small: Path) -> None:
    folder = small.parent / "run"
    refused(train("--data.path", "/nowhere", check=False), "/nowhere", "shards.pack")
    refused(train("--batch.size", "7", "--batch.micro", "2", check=False), "batch.size 7", "6 or 8")
    refused(train("--model.channels", "16,32,64,128,256,512", check=False), "16 pixels", "multiples of 32")
    refused(train("--run", str(small / "x"), check=False), "small.yaml")
    assert not folder.exists()


def test_bad_input_under_the_launcher_is_one_line(train: Train, small: Path) -> None:
    finished = train("--data.path", "/nowhere", ranks=2, check=False, launcher=True)
    errors = [line for line in finished.err.splitlines() if line.startswith("error:")]
    assert finished.code != 0 and len(errors) == 1 and "/nowhere" in errors[0]


def test_another_experiment_does_not_enter_a_run_folder(train: Train, small: Path) -> None:
    train("--train.steps", "1")
    before = {p: p.stat().st_mtime_ns for p in (small.parent / "run").rglob("*")}
    finished = train("--optimizer.lr", "0.5", check=False)
    refused(finished, "optimizer.lr was 0.001, now 0.5")
    assert before == {p: p.stat().st_mtime_ns for p in (small.parent / "run").rglob("*")}


def test_a_loss_that_is_no_number_ends_the_run_before_a_checkpoint(train: Train, small: Path) -> None:
    # A rate that throws the weights out of fp32's range
    finished = train("--optimizer.lr", "1e38", check=False)
    errors = [line for line in finished.err.splitlines() if line.startswith("error:")]
    assert finished.code == exits.FATAL and len(errors) == 1 and "no longer finite" in errors[0]
    assert checkpoint.complete(small.parent / "run") == []


@pytest.mark.parametrize("zero", ["0", "1"])
@pytest.mark.parametrize("ends_by", ["max_skips", "steps"])
def test_within_a_streak_of_steps_left_out_nothing_is_saved_or_removed(
    train: Train, small: Path, zero: str, ends_by: str
) -> None:
    """Such a rate that weights stay finite and losses do not."""
    ends = ["--guards.max_skips", "6"] if ends_by == "max_skips" else ["--train.steps", "9"]
    rate = ["--optimizer.lr", "1e3", "--train.checkpoint_every", "1", "--engine.zero", zero]
    finished = train(*rate, "--train.steps", "30", *ends, check=False)
    ledger = [json.loads(line) for line in (small.parent / "run" / "events.jsonl").open()]
    began = min(event["step"] for event in ledger if event["event"] == "skipped_step") - 1
    assert began > 1
    kept = list(map(checkpoint.step_of, checkpoint.complete(small.parent / "run")))
    assert kept == [began - 1, began]
    assert finished.code == exits.FATAL
    assert f"Last good checkpoint: step-{began - 1:08d}" in finished.err
    words = "guards.max_skips 6 reached" if ends_by == "max_skips" else "step 9: not saved"
    assert words in finished.err and f"step {began + 1}: not saved" in finished.out


def test_a_signal_within_a_streak_leaves_the_good_checkpoints(small: Path) -> None:
    steps = ["--train.steps", "100000", "--guards.max_skips", "100000", "--train.checkpoint_every", "1"]
    ranks = Ranks(small, 1, "--optimizer.lr", "1e3", "--engine.zero", "1", *steps)
    try:
        ranks.until_step(12)
        ranks.processes[0].send_signal(signal.SIGTERM)
        assert ranks.codes() == [exits.PREEMPTED]
    finally:
        ranks.kill()
    events = list(ledger.events(ranks.run))
    began = min(event["step"] for event in events if event["event"] == "skipped_step") - 1
    assert 1 < began < 12 and events[-1]["event"] == "preempted"
    assert list(map(checkpoint.step_of, checkpoint.complete(ranks.run))) == [began - 1, began]


def truncated(packed: Path, copy: Path) -> Path:
    copy.mkdir()
    for path in packed.iterdir():
        data = path.read_bytes()
        (copy / path.name).write_bytes(
            data[: len(data) * 3 // 4] if path.name == "train-000000.tar" else data
        )
    return copy


def test_trouble_of_one_rank_is_one_line(train: Train, small: Path, packed: Path) -> None:
    # Sooner or later one rank's share of a batch has a damaged sample and the other's has none.
    copy = truncated(packed, small.parent / "copy")
    finished = train(
        "--data.path",
        str(copy),
        "--train.steps",
        "40",
        "--train.checkpoint_every",
        "40",
        ranks=2,
        check=False,
        launcher=True,
    )
    errors = [line for line in finished.err.splitlines() if line.startswith("error:")]
    assert finished.code != 0 and len(errors) == 1 and "train-000000.tar" in errors[0]
    assert "Traceback" not in finished.err + finished.out


def test_a_truncated_shard_names_shard_and_sample(train: Train, small: Path, packed: Path) -> None:
    copy = truncated(packed, small.parent / "copy")
    refused(train("--data.path", str(copy), check=False), "train-000000.tar", "cs")
