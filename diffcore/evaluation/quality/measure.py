"""Everything that is measured of a run's samples: figures for JSON and TensorBoard, pictures for the report.

1. Labels to ask for are drawn uniformly; every rank draws its share of the images.
2. The judge reads them: fidelity, Frechet and kernel distance. The same on held-out real images, which is
   the ceiling of the one and the floor of the others.
3. Some conditions are drawn again and again with fresh noise: diversity under one condition.
4. Every rank looks through its share of the training images for the nearest to each sample, in a mirror too
   where training saw them so.
5. Where all real images are the same, the samples should be so too: the clean background.
6. A network may leave a checkerboard of 2 x 2 pixels over what it draws; real images have none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffcore.config.tree import Sampling
from diffcore.engine.ranks import World, gather_arrays
from diffcore.evaluation.judging.fidelity import fidelity
from diffcore.evaluation.judging.intervals import wilson
from diffcore.evaluation.judging.judge import Judge, Scores
from diffcore.evaluation.quality import checkerboard, distances, drawing, looks
from diffcore.runs.data import held_out, held_out_samples, open_reader
from diffcore.runs.model import TrainedModel
from shards.read import Batch, ShardReader
from shards.schema import UNKNOWN

REAL = 5_000
"""Most real images, of each split, that the distances and the background are measured with."""
AMONG = 50_000
"""Most training images that the nearest are looked for among."""
CONDITIONS, REPEATS = 8, 16
"""Conditions that are drawn again, and how often: diversity under one condition."""
CHUNK = 2048


@dataclass(frozen=True)
class Asked:
    """What was asked for, what was drawn and what the judge read: images [N, H, W, 3], labels [N, A]."""

    images: NDArray[np.uint8]
    labels_NA: NDArray[np.int64]
    read_NA: NDArray[np.int64] | None
    scores: Scores | None


@dataclass(frozen=True)
class Quality:
    """The figures, and what the report shows of them."""

    figures: dict[str, Any]
    asked: Asked
    real: Batch
    repeats: NDArray[np.uint8]
    neighbours: list[tuple[int, NDArray[np.uint8], float]]
    """Sample, its nearest training image and their distance, nearest first."""


def measure(
    model: TrainedModel,
    judge: Judge | None,
    sampling: Sampling,
    world: World,
    *,
    samples: int,
    seed: int = 1,
    inception: Path | None = None,
) -> Quality:
    """Draw and measure. A collective: every rank calls it, and all get the result."""
    distances.require()
    labels_NA = drawing.asked_labels(model, samples, seed)
    images = drawing.draw(model, labels_NA, sampling, seed, world)
    with open_reader(model.config, "train", order="full", seed=seed) as train:
        # Without held-out images training images stand in for them, and the record says so.
        validated = held_out(train.index, least=2) == "val"
        real = held_out_samples(model.config, REAL)
        nearest, control = _nearest(train, images, real.images, world, model.config.data.flip)
        background = looks.Background.of(
            train.read(np.arange(first, min(first + CHUNK, REAL, len(train)))).images
            for first in range(0, min(REAL, len(train)), CHUNK)
        )
        # As many training images as samples, for the floor of the distances.
        sibling = train.read(np.arange(min(len(train), samples, REAL))).images
        order = np.argsort(nearest.distance_N)[:24]
        close = train.read(nearest.place_N[order]).images
    repeats = _repeats(model, sampling, seed, world, samples)

    figures: dict[str, Any] = {
        "step": model.step,
        "samples": samples,
        "seed": seed,
        "sampling": drawing.settings(sampling),
        "held_out": len(real.images) if validated else 0,
    }
    read_NA = scores = None
    if judge is not None:
        reading, ours, theirs = judge.read(images), judge.read(real.images), judge.read(sibling)
        if model.config.model.conditional:
            read_NA, scores = reading.labels_NA, judge.score(images, labels_NA, reading)
            figures["fidelity"] = fidelity(judge, scores, judge.score(real.images, real.labels, ours))
        figures["distances"] = {
            "frechet": distances.frechet(ours.features_NF, reading.features_NF),
            "frechet_of_training_images": distances.frechet(ours.features_NF, theirs.features_NF),
            "kernel": distances.kernel(ours.features_NF, reading.features_NF),
            "kernel_of_training_images": distances.kernel(ours.features_NF, theirs.features_NF),
            "training_images": len(sibling),
        }
        figures["variety"] = {
            name: {"drawn": looks.effective_number(reading.labels_NA[:, i]),
                   "real": looks.effective_number(ours.labels_NA[:, i])}
            for i, name in enumerate(a.name for a in model.schema) if name in judge.readable
        }  # fmt: skip
    if inception is not None:
        figures.setdefault("distances", {})["inception"] = distances.inception_frechet(
            real.images, images, inception
        )
    small = looks.thumbnails(images)
    real_small = looks.thumbnails(real.images)
    figures["diversity"] = {
        "all": looks.spread(small[:2000]),
        "real": looks.spread(real_small[:2000]),
        "one_condition": _mean([looks.spread(looks.thumbnails(group)) for group in repeats]),
        "real_one_condition": _within(real_small, real.labels),
        "conditions": len(repeats),
        "repeats": repeats.shape[1],
    }
    figures["neighbours"] = {
        "median": float(np.median(nearest.distance_N)),
        "held_out_median": float(np.median(control.distance_N)),
        # 5 % if the samples are as near to the training images as held-out images are.
        "nearer_than_5_percent_of_held_out": looks.share_below(nearest.distance_N, control.distance_N, 0.05),
        "nearest": float(nearest.distance_N.min()),
        "held_out_nearest": float(control.distance_N.min()),
        "among": min(AMONG, len(train)),
    }
    if background.share:
        figures["background"] = _background(background, images, real.images)
    if images.shape[1] >= checkerboard.LEAST:
        figures["checkerboard"] = _checkerboard(images, real.images)
    pairs = [(int(i), image, float(nearest.distance_N[i])) for i, image in zip(order, close, strict=True)]
    return Quality(figures, Asked(images, labels_NA, read_NA, scores), real, repeats, pairs)


def _background(
    background: looks.Background, images: NDArray[np.uint8], real: NDArray[np.uint8]
) -> dict[str, Any]:
    clean, real_clean = background.clean(images), background.clean(real)
    seen, real_seen = background.blemish(images) <= looks.SEEN, background.blemish(real) <= looks.SEEN
    return {
        "pixels": background.share,
        "clean_pixels": float(clean.mean()),
        # To a person, and pixel by pixel.
        "clean_to_the_eye": wilson(int(seen.sum()), len(seen)).as_dict(),
        "real_clean_to_the_eye": float(real_seen.mean()),
        "clean_images": wilson(int((clean >= looks.WHOLE).sum()), len(clean)).as_dict(),
        "real_clean_images": float((real_clean >= looks.WHOLE).mean()),
    }


def _checkerboard(images: NDArray[np.uint8], real: NDArray[np.uint8]) -> dict[str, Any]:
    drawn, control = checkerboard.checkerboard(images), checkerboard.checkerboard(real)
    above = int((drawn > np.quantile(control, 0.95)).sum())
    return {
        "median": float(np.median(drawn)),
        "real_median": float(np.median(control)),
        # 5 % where the samples have no more of it than real images.
        "above_95_percent_of_real": wilson(above, len(drawn)).as_dict(),
    }


def _nearest(
    train: ShardReader, images: NDArray[np.uint8], held_out: NDArray[np.uint8], world: World, mirrored: bool
) -> tuple[looks.Nearest, looks.Nearest]:
    """The nearest training image to each sample and to each held-out image, ``mirrored`` ones among them."""
    found = [looks.Nearest.to(looks.thumbnails(them)) for them in (images, held_out)]
    places = np.arange(min(AMONG, len(train)))
    mine = np.array_split(places, world.size)[world.rank]
    for first in range(0, len(mine), CHUNK):
        part = mine[first : first + CHUNK]
        others = train.read(part).images
        for seen in (others, others[:, :, ::-1]) if mirrored else (others,):
            small = looks.thumbnails(seen)
            for nearest in found:
                nearest.look(small, part)
    for nearest in found:
        both = (gather_arrays(array, world) for array in (nearest.distance_N, nearest.place_N))
        for distance_N, place_N in zip(*both, strict=True):
            nearest.take(distance_N, place_N)
    return found[0], found[1]


def _repeats(
    model: TrainedModel, sampling: Sampling, seed: int, world: World, samples: int
) -> NDArray[np.uint8]:
    """CONDITIONS of the labels, each with fresh noise: uint8 [conditions, repeats, H, W, 3]."""
    labels_NA = np.repeat(drawing.asked_labels(model, CONDITIONS, seed), REPEATS, axis=0)
    # Positions that no other sample of this evaluation has.
    positions_N = np.arange(samples, samples + len(labels_NA))
    images = drawing.draw(model, labels_NA, sampling, seed, world, positions_N=positions_N)
    return images.reshape(CONDITIONS, REPEATS, *images.shape[1:])


def _within(small_NP: NDArray[np.float32], labels_NA: NDArray[np.int64]) -> float:
    """Mean distance between two real images of the same labels; nan where no two have the same.

    Images some of whose labels are unknown are left out.
    """
    if not labels_NA.shape[1]:
        return looks.spread(small_NP)
    known_N = (labels_NA != UNKNOWN).all(1)
    small_NP, labels_NA = small_NP[known_N], labels_NA[known_N]
    _, group_N = np.unique(labels_NA, axis=0, return_inverse=True)
    counts = np.bincount(group_N)
    groups = [small_NP[group_N == g] for g in np.flatnonzero(counts > 1)]
    return _mean([looks.spread(group) for group in groups])


def _mean(values: list[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
