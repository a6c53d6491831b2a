"""python -m diffcore.evaluation.points RUN [--samples 512] [--raw]

The quality of every kept checkpoint of a run, beside the loss it was reached with: the curve after the fact.
Writes points.json into the run folder. The same wishes and noise at every checkpoint. Those that only an
interruption saved are left out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase import cli
from diffbase.cli import InputError
from diffcore.evaluation import command
from diffcore.sample import load_run, sampling_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from diffcore.config import Config
    from diffcore.evaluation.judge import Judge, Reading
    from diffcore.sample import TrainedModel

FILE = "points.json"


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluation.points", __doc__)
    command.add_run(parser, 512, "images a checkpoint")
    parser.add_argument("--raw", action="store_true", help="the raw weights too, not the EMA alone")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's)")
    arguments = parser.parse_args(argv)
    command.check(arguments)

    import numpy as np
    import torch

    from diffbase.files import write_atomic
    from diffcore import checkpoint
    from diffcore.evaluate import judge_of
    from diffcore.evaluation import draws
    from shards.read import ShardReader

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    model = load_run(arguments.run)
    judge = judge_of(model, arguments.judge)
    if judge is None:
        raise InputError(f"{arguments.run}: its shards have no labels to judge by")
    with ShardReader(model.config.data.path, "val", order="sequential") as reader:
        real = judge.read(reader.read(np.arange(min(len(reader), arguments.samples))).images)
    sampling = sampling_of(model.config, arguments)
    labels_NA = draws.wishes(model, arguments.samples, arguments.seed)
    points = []
    steps = planned(model.config, checkpoint.complete(arguments.run))
    for before, step in zip([0, *steps], steps, strict=False):
        loss = mean_loss(arguments.run, before, step)
        for weights in ("ema", "raw") if arguments.raw else ("ema",):
            model = load_run(arguments.run, weights, str(step))
            images = draws.draw(model, labels_NA, sampling, arguments.seed, draws.start())
            point = {"step": step, "images": step * model.config.batch.size, "weights": weights, "loss": loss}
            points.append(point | figures(model, judge, judge.read(images), labels_NA, real, images))
    record = {"samples": arguments.samples, "sampling": draws.settings(sampling), "points": points}
    write_atomic(arguments.run / FILE, (json.dumps(record, indent=1) + "\n").encode())
    print(f"{arguments.run / FILE}: {len(points)} points")


def planned(config: Config, folders: Sequence[Path]) -> list[int]:
    """Steps of the checkpoints that the config asks for."""
    steps = [int(folder.name.removeprefix("step-")) for folder in folders]
    return [step for step in steps if step % config.train.checkpoint_every == 0 or step == config.train.steps]


def figures(
    model: TrainedModel,
    judge: Judge,
    reading: Reading,
    labels_NA: NDArray[np.int64],
    real: Reading,
    images_NHWC: NDArray[np.uint8],
) -> dict[str, Any]:
    """Fidelity (where labels were asked for), Frechet distance, and variety: 1 as the real images'."""
    import numpy as np

    from diffcore.evaluation import distances, looks

    columns = [i for i, a in enumerate(judge.schema) if a.name in judge.readable]
    ratios = [
        looks.effective_number(reading.labels_NA[:, i]) / looks.effective_number(real.labels_NA[:, i])
        for i in columns
    ]
    result: dict[str, Any] = {
        "frechet": distances.frechet(real.features_NF, reading.features_NF),
        "variety": float(np.mean(ratios)),
        "spread": looks.spread(looks.thumbnails(images_NHWC)),
    }
    if model.config.model.conditional:
        scores = judge.score(images_NHWC, labels_NA, reading)
        result["fidelity"] = scores.mean.mean
        result["attributes"] = {name: share.as_dict() for name, share in scores.shares.items() if share.count}
    return result


def mean_loss(run: Path, after: int, to: int) -> float | None:
    """Mean training loss of the steps ``after`` + 1 .. ``to`` that were logged."""
    losses = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if "train/loss" in entry and after < entry["step"] <= to:
            losses.append(entry["train/loss"])
    return sum(losses) / len(losses) if losses else None


if __name__ == "__main__":
    cli.run(main)
