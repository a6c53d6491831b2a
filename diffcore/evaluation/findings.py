"""python -m diffcore.evaluation.findings [--out docs/findings.md]

Repeats eight findings of earlier systems as experiments: trains every config that they need (configs/
experiments/) with several seeds, measures each checkpoint and writes a page that says what came out and
whether the finding holds. What is done is not done again, so an interrupted command goes on.

Small by default: 16 x 16 and 32 x 32 stand-in avatars, two CPU cores, under an hour. On GPUs:

    python -m diffcore.evaluation.findings --scale full --jobs 1 --out findings-full.md

or as one job array, whose runs are then collected from the folder that they lie in:

    python -m diffcore.evaluation.findings --scale full --sweep points.yaml
    python launch/submit.py --config configs/experiments/one-hot.yaml --run RUNS --sweep points.yaml --nodes 1
    python -m diffcore.evaluation.findings --scale full --runs RUNS --collect
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import write_atomic
from diffcore import configure
from diffcore.config import REPOSITORY, flatten
from diffcore.evaluation import command
from diffcore.evaluation.findings_page import Measured, Point, page, picture
from diffcore.evaluation.points import FILE

CONFIGS = REPOSITORY / "configs" / "experiments"
NAMES = (
    "one-hot", "unit-pixels", "unconditional", "integers", "one-head", "one-head-double-tau", "double-tau",
    "constant-rate", "half-scale", "large", "large-half-scale",
)  # fmt: skip
SMALL_SIZE, LARGE_SIZE = {"cpu": 16, "full": 64}, {"cpu": 32, "full": 128}

# What turns the small experiments into full ones: the network, batch and length of configs/avatar.yaml.
FULL: dict[str, Any] = {
    "model": {"channels": [128, 256, 512, 1024], "attention_levels": [1, 2, 3], "tau_tokens": 6},
    "optimizer": {"lr": 2e-4, "weight_decay": 0.01},
    "lr_schedule": {"warmup_samples": 128_000},
    "batch": {"size": 128},
    "engine": {"zero": 1, "precision": "bf16"},
    "ema": {"decay": 0.9999},
    "train": {"steps": 14_000, "checkpoint_every": 1400},
    "sampling": {"every": 1400},
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluation.findings", __doc__)
    parser.add_argument("--out", type=Path, default=Path("findings.md"), help="the page (findings.md)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/findings-SCALE)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of every experiment (default 3)")
    parser.add_argument("--scale", choices=("cpu", "full"), default="cpu", help="how large (default cpu)")
    parser.add_argument("--jobs", type=int, help="runs at once (default: one a core; full: 1)")
    parser.add_argument("--samples", type=int, default=256, help="images a checkpoint (default 256)")
    parser.add_argument(
        "--sweep", type=Path, metavar="FILE", help="write the plan for launch/submit.py, only"
    )
    parser.add_argument("--collect", action="store_true", help="train nothing: measure and write the page")
    arguments = parser.parse_args(argv)
    if not 2 <= arguments.seeds <= 10:
        raise InputError(f"--seeds {arguments.seeds}: allowed: 2 to 10")
    runs = arguments.runs or REPOSITORY / "runs" / f"findings-{arguments.scale}"
    points = plan(runs, arguments.seeds, arguments.scale)
    if arguments.sweep:
        arguments.sweep.write_text(yaml.safe_dump([dict(overrides(point)) for point in points]))
        print(f"{arguments.sweep}: {len(points)} points")
        return

    from diffcore.evaluation import experiments

    for data, large in dict.fromkeys((p.config.data.path, p.name.startswith("large")) for p in points):
        assert isinstance(data, Path)
        experiments.prepare(data, (LARGE_SIZE if large else SMALL_SIZE)[arguments.scale], say)
    jobs = arguments.jobs or (1 if arguments.scale == "full" else len(os.sched_getaffinity(0)))
    work = [
        partial(_one, point, arguments.collect, arguments.scale, arguments.samples)
        for point in points
        if not (point.run / FILE).exists()
    ]
    experiments.at_once(work, min(jobs, len(work)) or 1)
    measured: Measured = {(p.name, p.seed): row for p in points if (row := _read(p)) is not None}
    drawing = arguments.out.with_suffix(".svg")
    write_atomic(drawing, picture(measured).encode())
    sizes = SMALL_SIZE[arguments.scale], LARGE_SIZE[arguments.scale]
    made_by = "python -m diffcore.evaluation.findings" + " --scale full" * (arguments.scale == "full")
    text = page(measured, points, sizes, made_by, drawing.name)
    write_atomic(arguments.out, text.encode())
    say(f"page: {arguments.out}")


def plan(runs: Path, seeds: int, scale: str) -> list[Point]:
    """Every run, by seed: folders RUNS/000, RUNS/001, ... as a sweep of launch/submit.py makes them."""
    points: list[Point] = []
    for seed in range(seeds):
        for name in NAMES:
            run = runs / f"{len(points):03d}"
            tree: dict[str, Any] = {"run": str(run), "seed": seed}
            if scale == "full":
                large = name.startswith("large")
                size = (LARGE_SIZE if large else SMALL_SIZE)[scale]
                data = REPOSITORY / "data" / f"experiments-{size}"
                patch = 2 if large else 1  # both on a ladder that begins at 64 x 64
                model = FULL["model"] | {"patch": patch}
                tree |= FULL | {"model": model, "data": {"path": str(data)}}
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
    from diffcore.evaluation import experiments, points

    if not collect and scale == "full":
        flags = [w for key, value in overrides(point).items() for w in (f"--{key}", _written(value))]
        launcher = ["-m", "deepspeed", "diffcore/train.py"]
        flags = ["--config", str(CONFIGS / "one-hot.yaml"), *flags, "--run", str(point.run)]
        experiments.run(*launcher, *flags, log=point.run.with_suffix(".log"))
    elif not collect:
        experiments.train(point.config, point.run.with_suffix(".log"))
    if not (point.run / "checkpoints" / f"step-{point.config.train.steps:08d}" / "COMPLETE").exists():
        return  # collected before it was done
    raw = ["--raw"] if point.name == "constant-rate" else []
    threads = ["--threads", "1"] if scale == "cpu" else []
    points.main([str(point.run), "--samples", str(samples), *raw, *threads])
    say(f"{point.run.name}: {point.name}, seed {point.seed}: done")


def say(line: str) -> None:
    print(line, flush=True)


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _read(point: Point) -> dict[str, Any] | None:
    path = point.run / FILE
    return json.loads(path.read_text()) if path.exists() else None


if __name__ == "__main__":
    cli.run(main)
