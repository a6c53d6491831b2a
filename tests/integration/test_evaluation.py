"""Class data from folders of images, through pack, judge, train, evaluate, sweep and sample."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from diffcore import evaluate, export, sample
from diffcore.evaluation import collapse, points, sweep, train_judge
from diffcore.evaluation.studies import fast_samplers
from shards import pack
from tests.integration.conftest import REPOSITORY, Finished, free_port, run

DIGITS = """
run: run
data: {path: packed}
model: {kind: avatar, channels: [16, 32], attention_levels: [0, 1], heads: 2, tau_tokens: 2}
diffusion: {schedule: cosine, timesteps: 100, target: v}
optimizer: {lr: 3.0e-3}
batch: {size: 32}
engine: {zero: 0, threads: 1}
ema: {decay: 0.99}
train: {steps: 500, log_every: 100, checkpoint_every: 250, best: quality/fidelity}
validation: {samples: 64, drawn: 60}
sampling: {every: 500, count: 4, sampler: dpm++, steps: 10}
"""


def python(*arguments: str | Path, cwd: Path = REPOSITORY) -> Finished:
    finished = run([sys.executable, *map(str, arguments)], cwd=cwd)
    assert finished.code == 0, finished.out[-3000:] + finished.err[-3000:]
    return finished


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """scikit-learn's 1,797 digits of 8 x 8 as folders of PNGs, packed, judged and trained on."""
    from sklearn.datasets import load_digits

    folder = tmp_path_factory.mktemp("digits")
    images, labels = load_digits(return_X_y=True)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        (folder / "images" / f"digit {label}").mkdir(parents=True, exist_ok=True)
        pixels = (image.reshape(8, 8) * 255 / 16).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"digit {label}" / f"{i}.png")
    packed = str(folder / "packed")
    pack.main([str(folder / "images"), "--out", packed, "--size", "8", "--val", "0.2", "--jobs", "1"])
    train_judge.main([packed, "--epochs", "8", "--threads", "1"])
    (folder / "digits.yaml").write_text(DIGITS)
    python("diffcore/train.py", "--config", folder / "digits.yaml")
    return folder


def test_digits_are_drawn_as_asked(digits: Path) -> None:
    evaluate.main([str(digits / "run"), "--samples", "200"])
    figures = json.loads((digits / "run" / "quality.json").read_text())
    digit = figures["fidelity"]["attributes"]["class"]
    assert digit["judge_on_real_images"]["share"] > 0.95
    assert digit["low"] > 0.5 > digit["chance"] * 4
    assert figures["distances"]["frechet"] > figures["distances"]["frechet_of_training_images"]
    assert figures["diversity"]["real_one_condition"] > 0
    page = (digits / "run" / "quality.html").read_text()
    assert "digit 7" in page and "http:" not in page and "https:" not in page
    assert any((digits / "run" / "tensorboard").iterdir())


@pytest.mark.parametrize("dtype", ["int8", "bf16"])
def test_a_compact_file_says_the_same_to_the_judge(digits: Path, tmp_path: Path, dtype: str) -> None:
    """Its fidelity is within the interval of the run's, and what it has lost is told."""
    common = ["--samples", "200", "--seed", "2", "--out"]
    evaluate.main([str(digits / "run"), *common, str(tmp_path / "run")])
    file, figures = tmp_path / "digits.safetensors", str(tmp_path / "run" / "quality.json")
    export.main([str(digits / "run"), "--compact", dtype, "--out", str(file), "--figures", figures])
    evaluate.main([str(file), "--data", str(digits / "packed"), *common, str(tmp_path / "file")])
    run, ours = (json.loads((tmp_path / name / "quality.json").read_text()) for name in ("run", "file"))
    run, ours = (tree["fidelity"]["attributes"]["class"] for tree in (run, ours))
    assert run["low"] <= ours["share"] <= run["high"]
    card = json.loads(file.with_suffix(".json").read_text())
    assert card["figures"]["quality"]["fidelity"]["attributes"]["class"] == run
    assert file.stat().st_size == card["bytes"] < 4 * card["parameters"] * (0.4 if dtype == "int8" else 0.6)
    assert str(digits) not in json.dumps(card)


def test_ranks_share_the_work_and_draw_the_same(digits: Path, tmp_path: Path) -> None:
    common = [str(digits / "run"), "--samples", "41", "--checkpoint", "best", "--out"]
    evaluate.main([*common, str(tmp_path / "one")])
    # fmt: off
    python("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()),
           "-m", "diffcore.evaluate", *common, tmp_path / "two")
    # fmt: on
    one, two = (json.loads((tmp_path / name / "quality.json").read_text()) for name in ("one", "two"))
    assert one["fidelity"]["mean"] == pytest.approx(two["fidelity"]["mean"], abs=0.03)
    assert one["neighbours"]["median"] == pytest.approx(two["neighbours"]["median"], rel=1e-3)


def test_a_sweep_recommends_and_sample_obeys(digits: Path, tmp_path: Path) -> None:
    # fmt: off
    sweep.main([str(digits / "run"), "--scales", "0,1,3", "--samplers", "dpm++,ddim", "--steps", "3,10",
                "--samples", "80"])
    # fmt: on
    record = json.loads((digits / "run" / "sweep.json").read_text())
    by_scale = {row["guidance"]: row["fidelity"]["mean"] for row in record["scales"][:3]}
    assert by_scale[0.0] < 0.35 < by_scale[1.0]  # without guidance nothing was asked for
    assert (digits / "run" / "sweep.png").exists() and (digits / "run" / "sweep.html").exists()
    recommended = record["recommended"]
    assert recommended["guidance"] > 0
    sample.main(["--run", str(digits / "run"), "--count", "2", "--out", str(tmp_path / "grid.png")])
    drawn = json.loads((tmp_path / "grid.json").read_text())
    assert (drawn["sampler"], drawn["steps"]) == (recommended["sampler"], recommended["steps"])
    assert drawn["cells"][0]["guidance"] == recommended["guidance"]


def test_points_measure_every_checkpoint_beside_its_loss(digits: Path) -> None:
    points.main([str(digits / "run"), "--samples", "60", "--raw"])
    found = json.loads((digits / "run" / "points.json").read_text())["points"]
    places = [(point["step"], point["weights"]) for point in found]
    assert places == [(250, "ema"), (250, "raw"), (500, "ema"), (500, "raw")]
    assert all(0 < point["loss"] < 1 for point in found) and found[2]["fidelity"] > 0.5


def test_the_best_checkpoint_is_the_most_faithful_and_the_curve_is_in_tensorboard(digits: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = digits / "run"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    curve = {line["step"]: line["quality/fidelity"] for line in lines if "quality/fidelity" in line}
    assert set(curve) == {250, 500}
    best = json.loads((run / "checkpoints" / "best.json").read_text())
    assert (best["metric"], best["step"]) == ("quality/fidelity", max(curve, key=lambda step: curve[step]))
    board = EventAccumulator(str(run / "tensorboard"))
    board.Reload()
    drawn = {event.step: event.value for event in board.Scalars("quality/fidelity")}
    assert drawn == pytest.approx(curve)


def test_the_table_of_samplers_goes_on_where_it_was_interrupted(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fast_samplers, "RIVALS", ({"sampler": "dpm++sde", "steps": 5},))
    out = tmp_path / "guidance.md"
    command = [str(digits / "run"), "--samples", "300", "--out", str(out)]
    collapse.main([*command, "--scales", "1"])
    kept = {path: path.stat().st_mtime_ns for path in (digits / "run" / "collapse").iterdir()}
    assert len(kept) == 4  # two cells in two pieces each
    first, lost = json.loads(out.with_suffix(".json").read_text()), min(kept)
    lost.unlink()
    collapse.main([*command, "--scales", "1,4"])
    again = json.loads(out.with_suffix(".json").read_text())
    assert [row["fidelity"] for row in again[:2]] == [row["fidelity"] for row in first]
    drawn = [path for path in kept if path.stat().st_mtime_ns != kept[path]]
    assert drawn == [lost]
    page = out.read_text()
    assert "| DDPM, all steps | SDE-DPM-Solver++ 2M, 5 steps |" in page and "\n| 4 |" in page


def test_an_evaluation_without_a_judge_says_what_to_do(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"train one: python -m diffcore\.evaluation\.train_judge"):
        evaluate.main([str(digits / "run"), "--judge", str(tmp_path)])
