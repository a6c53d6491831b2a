"""Eight findings of earlier systems as experiments: the runs that they need, trained and measured."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from diffbase.cli import InputError
from diffbase.files import write_atomic
from diffbase.formats import json_file
from diffbase.line import say
from diffbase.shipped import shipped
from diffcore.config import configure
from diffcore.config.section import flatten
from diffcore.evaluation.studies import curve, experiments
from diffcore.evaluation.studies.findings_page import COLORS, Measured, Point, looks, needed, page, picture
from diffcore.runs import checkpoint
from diffcore.runs.sampling import recommended_sampling
from diffcore.runs.source import config_of

CONFIGS = shipped("configs", "experiments")
NAMES = (
    "one-hot", "unit-pixels", "unconditional", "integers", "one-head", "one-head-double-tau", "double-tau",
    "constant-rate", "half-scale", "small", "small-half-scale",
)  # fmt: skip
SIZES = 32, 64
"""Edges of the images: of the experiments that are small, and of all others."""
FEW = 1100
"""Avatars of the experiment that is to overfit; its judge counts the colours alone, which so few teach."""

# What turns the small experiments into full ones: the network, batch and length of configs/avatar-adamw.yaml.
FULL: dict[str, Any] = {
    "model": {
        "channels": [128, 256, 512, 1024],
        "attention_levels": [1, 2, 3],
        "patch": 1,
        "tau_tokens": 6,
        "label_gain": 1.0,
    },
    "optimizer": {"kind": "adamw", "lr": 2e-4, "weight_decay": 0.01},
    "lr_schedule": {"warmup_samples": 128_000},
    "batch": {"size": 128},
    "engine": {"zero": 1, "precision": "bf16"},
    "ema": {"decay": 0.9999},
    "train": {"steps": 14_000, "checkpoint_every": 1400},
    "sampling": {"every": 1400},
}
SEED = 1
"""Of the samples at every checkpoint."""


def repeat(
    points: list[Point], scale: str, jobs: int | None, samples: int, collect: bool = False
) -> Measured:
    """Train and measure, look by look, what undecided findings need; the figures of all that is there.

    What is done is not done again. ``collect``: train nothing, and measure all runs that are there.
    """
    for data, name in {point.config.data.path: point.name for point in points}.items():
        assert isinstance(data, Path)
        few: dict[str, Any] = {"avatars": data.with_name("avatars-few"), "count": FEW, "headline": COLORS}
        size = SIZES[not name.startswith("small")]
        experiments.prepare(data, size, say, **(few if name == "constant-rate" else {}))
    jobs = jobs or (1 if scale == "full" else len(os.sched_getaffinity(0)))
    seeds = len({point.seed for point in points})
    for look in (seeds,) if collect else looks(seeds):
        names = set(NAMES) if collect else needed(_measured(points), seeds)
        work = [
            partial(_one, point, collect, scale, samples)
            for point in points
            if point.seed < look and point.name in names and not (point.run / curve.FILE).exists()
        ]
        experiments.at_once(work, min(jobs, len(work)) or 1)
    return _measured(points)


def _measured(points: list[Point]) -> Measured:
    return {(p.name, p.seed): row for p in points if (row := _read(p)) is not None}


def write(out: Path, measured: Measured, points: list[Point], scale: str) -> None:
    """The page and its picture beside it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    drawing = out.with_suffix(".svg")
    write_atomic(drawing, picture(measured).encode())
    made_by = "python -m diffcore.evaluation.findings" + " --scale full" * (scale == "full")
    write_atomic(out, page(measured, points, SIZES, made_by, drawing.name).encode())


def plan(runs: Path, seeds: int, scale: str) -> list[Point]:
    """Every run, by seed: folders RUNS/000, RUNS/001, ... as a sweep of launch/submit.py makes them."""
    points: list[Point] = []
    for seed in range(seeds):
        for name in NAMES:
            run = runs / f"{len(points):03d}"
            tree: dict[str, Any] = {"run": str(run), "seed": seed}
            if scale == "full":
                tree |= FULL
            points.append(Point(name, seed, configure.load(CONFIGS / f"{name}.yaml", tree), run))
    return points


def overrides(point: Point) -> Mapping[str, Any]:
    """What of the point's config differs from one-hot.yaml, as dotted fields: a point of a sweep file."""
    base, own = (
        dict(flatten(config.model_dump(mode="json")))
        for config in (configure.load(CONFIGS / "one-hot.yaml"), point.config)
    )
    return {key: value for key, value in own.items() if value != base.get(key) and key != "run"} or {
        "seed": point.seed
    }


def _one(point: Point, collect: bool, scale: str, samples: int) -> None:
    """Train a run and measure its checkpoints."""

    if not collect and scale == "full":
        flags = [w for key, value in overrides(point).items() for w in (f"--{key}", _written(value))]
        launcher = ["-m", "deepspeed.launcher.runner", "--module", "diffcore.train"]
        flags = ["--config", str(CONFIGS / "one-hot.yaml"), *flags, "--run", str(point.run)]
        experiments.run(*launcher, *flags, log=point.run.with_suffix(".log"))
    elif not collect:
        experiments.train(point.config, point.run.with_suffix(".log"))
    if not (checkpoint.folder_at(point.run, point.config.train.steps) / "COMPLETE").exists():
        return  # collected before it was done
    if scale == "cpu":
        torch.set_num_threads(1)
    sampling = recommended_sampling(config_of(point.run), point.run)
    raw = point.name == "constant-rate"
    curve.measure(point.run, sampling, samples=samples, seed=SEED, raw=raw)
    say(f"{point.run.name}: {point.name}, seed {point.seed}: done")


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(point: Point) -> dict[str, Any] | None:
    path = point.run / curve.FILE
    if not path.exists():
        return None
    row: dict[str, Any] = json_file.read(path, nan=True)
    if any(at[name] is None for at in row["points"] for name in ("fidelity", "variety") if name in at):
        raise InputError(f"{path}: {row.get('refused') or 'there is no fidelity in it'}")
    return row
