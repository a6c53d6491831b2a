"""python benchmarks/by_drawing.py RUN [--samples 96] [--guidance 2] [--steps 20] [--jobs N] [--json FILE]

How much of what was asked for do a run's samples show, by a judge that nobody trained? Every sample is read
as the drawing that it is nearest to (shards/standin/nearest.py), which on real images is right in everything
that shows, in all 18 attributes. For stand-in avatars. RUN is a run folder, a checkpoint, an export or
pretrained:NAME.

Prints one JSON object: of every attribute the share that is as asked with Wilson's 95 % interval, the mean
over the headline's twelve and over all, and two controls: as many held-out images read the same way, and the
samples against labels in another order (chance).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from diffbase import cli  # noqa: E402
from diffbase.cli import InputError  # noqa: E402
from diffbase.files import write_json  # noqa: E402
from diffcore.evaluation.judging.headline import fixed  # noqa: E402
from diffcore.evaluation.judging.intervals import wilson  # noqa: E402
from diffcore.runs.data import held_out_samples, with_data  # noqa: E402
from diffcore.runs.draw import choose_labels  # noqa: E402
from diffcore.runs.model import load_model  # noqa: E402
from diffcore.runs.sampling import changed_sampling  # noqa: E402
from shards.schema import CARTOON_SET  # noqa: E402
from shards.standin import nearest  # noqa: E402
from shards.standin.visible import visible  # noqa: E402


def main() -> None:
    parser = cli.Parser(prog="python benchmarks/by_drawing.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("run", type=Path, help="run folder, checkpoint, export or pretrained:NAME")
    parser.add_argument("--samples", type=cli.between(2), default=96, help="images drawn (default 96)")
    parser.add_argument("--seed", type=int, default=1, help="of wishes and noise (default 1)")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: the run's)")
    parser.add_argument("--steps", type=int, help="model calls of a sample (default: the run's)")
    parser.add_argument("--data", help="its shards, for the control of real images, if they have moved")
    parser.add_argument("--jobs", type=cli.between(1), default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="where the figures go too")
    a = parser.parse_args()
    model = with_data(load_model(a.run), a.data)
    if model.schema != CARTOON_SET:
        raise InputError(f"{a.run}: only avatars can be drawn; this run's labels are others")
    asked = {name: getattr(a, name) for name in ("guidance", "steps") if getattr(a, name) is not None}
    sampling = changed_sampling(model.config, asked)
    wishes_NA = choose_labels(model.schema, {}, a.seed, a.samples)
    images = model.draw(wishes_NA, sampling, a.seed)
    real, labels_NA = held_out_samples(model.config, a.samples), wishes_NA.numpy()
    read = partial(at_once, jobs=a.jobs)
    found_NA = read(images, labels_NA)
    result = {
        "step": model.step,
        "samples": a.samples,
        "seed": a.seed,
        **sampling.model_dump(include={"guidance", "steps", "sampler"}),
        "asked": shares(found_NA, labels_NA),
        "real_images": shares(read(real.images, real.labels), real.labels),
        "shuffled_wishes": shares(found_NA, np.roll(labels_NA, 1, axis=0)),
    }
    if a.json:
        write_json(a.json, result)
    print(json.dumps(result))


def at_once(images: NDArray[np.uint8], asked_NA: NDArray[np.int64], jobs: int) -> NDArray[np.int64]:
    """``nearest.read`` in several processes."""
    parts = min(jobs * 4, len(images))
    with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
        found = pool.map(nearest.read, np.array_split(images, parts), np.array_split(asked_NA, parts))
        return np.concatenate(list(found))


def shares(found_NA: NDArray[np.int64], wished_NA: NDArray[np.int64]) -> dict[str, Any]:
    """The share of each attribute that is as wished, where it can be seen, and their means."""
    hit_NA, seen_NA = found_NA == wished_NA, visible(CARTOON_SET, wished_NA)
    each = {
        a.name: wilson(int(hit_NA[seen_NA[:, i], i].sum()), int(seen_NA[:, i].sum())).as_dict()
        for i, a in enumerate(CARTOON_SET)
    }
    over = fixed(CARTOON_SET)
    return {
        "headline": float(np.mean([each[name]["share"] for name in over])),
        "all": float(np.mean([row["share"] for row in each.values()])),
        "attributes": each,
    }


if __name__ == "__main__":
    cli.run(main)
