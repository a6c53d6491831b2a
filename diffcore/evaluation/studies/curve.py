"""The quality of every kept checkpoint of a run, beside the loss that it was reached with."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffbase.cli import InputError
from diffbase.files import write_json
from diffcore.config.tree import Config, Sampling
from diffcore.evaluation.judging.fidelity import over_all
from diffcore.evaluation.judging.judge import Judge, Reading, Scores, open_run
from diffcore.evaluation.quality import distances, drawing, looks
from diffcore.runs import checkpoint, metrics
from diffcore.runs.data import held_out_samples
from diffcore.runs.model import TrainedModel, load_model

FILE = "points.json"


def measure(
    run: Path,
    sampling: Sampling,
    judge_folder: Path | None = None,
    data: str | None = None,
    *,
    samples: int,
    seed: int,
    raw: bool,
) -> list[dict[str, Any]]:
    """A point per checkpoint that the config asks for, the same labels and noise at each; also in
    points.json.

    ``raw``: the raw weights too, not the EMA alone. InputError for shards without labels or judge.
    """
    distances.require()
    model, judge = open_run(run, judge_folder, data)
    if judge is None:
        raise InputError(f"{run}: its shards have no labels to judge by")
    held_out = held_out_samples(model.config, samples)
    real = judge.read(held_out.images)
    real_scores = judge.score(held_out.images, held_out.labels, real)
    labels_NA = drawing.asked_labels(model, samples, seed)
    points = []
    steps = planned(model.config, checkpoint.complete(run))
    for before, step in zip([0, *steps], steps, strict=False):
        loss = mean_loss(run, before, step)
        for weights in ("ema", "raw") if raw else ("ema",):
            model = load_model(run, weights=weights, checkpoint=step)
            images = drawing.draw(model, labels_NA, sampling, seed, drawing.start(run))
            point = {"step": step, "images": step * model.config.batch.size, "weights": weights, "loss": loss}
            point["validation_loss"] = validation_loss(run, step, weights)
            points.append(
                point | figures(model, judge, judge.read(images), labels_NA, real, images, real_scores)
            )
    write_json(
        run / FILE,
        {
            "samples": samples,
            "sampling": drawing.settings(sampling),
            "over": judge.headline,
            "count": len(judge.headline),
            "refused": judge.refused,
            "points": points,
        },
    )
    return points


def planned(config: Config, folders: Sequence[Path]) -> list[int]:
    """Steps of the checkpoints that the config asks for; of those that come by time, all."""
    steps, every = [checkpoint.step_of(folder) for folder in folders], config.train.checkpoint_every
    if isinstance(every, str):
        return steps
    return [step for step in steps if step % every == 0 or step == config.train.steps]


def figures(
    model: TrainedModel,
    judge: Judge,
    reading: Reading,
    labels_NA: NDArray[np.int64],
    real: Reading,
    images_NHWC: NDArray[np.uint8],
    real_scores: Scores,
) -> dict[str, Any]:
    """Fidelity (where labels were asked for), Frechet distance, and variety: 1 as the real images'."""
    columns = [] if judge.refused else judge.columns
    ratios = [
        looks.effective_number(reading.labels_NA[:, i]) / looks.effective_number(real.labels_NA[:, i])
        for i in columns
    ]
    result: dict[str, Any] = {
        "frechet": distances.frechet(real.features_NF, reading.features_NF),
        "variety": float(np.mean(ratios)) if ratios else None,
        "spread": looks.spread(looks.thumbnails(images_NHWC)),
    }
    if model.config.model.conditional:
        scores = judge.score(images_NHWC, labels_NA, reading)
        result["fidelity"] = None if judge.refused else scores.mean.mean
        result["fidelity_attributes"] = len(judge.headline)
        corrected, _ = over_all(judge, scores, real_scores)
        result["fidelity_all"] = corrected and corrected.as_dict()
        result["attributes"] = {name: share.as_dict() for name, share in scores.shares.items() if share.count}
    return result


def mean_loss(run: Path, after: int, to: int) -> float | None:
    """Mean training loss of the steps ``after`` + 1 .. ``to`` that were logged."""
    losses = [
        entry["train/loss"]
        for entry in metrics.read(run)
        if "train/loss" in entry and after < entry["step"] <= to
    ]
    return sum(losses) / len(losses) if losses else None


def validation_loss(run: Path, step: int, weights: str) -> float | None:
    """The loss on held-out images at a checkpoint, where it was measured."""
    name = "validation/loss" + "_ema" * (weights == "ema")
    found = [entry[name] for entry in metrics.read(run) if name in entry and entry["step"] == step]
    return float(found[-1]) if found else None
