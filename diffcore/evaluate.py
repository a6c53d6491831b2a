"""python -m diffcore.evaluate RUN [--samples 2000] [--guidance 2] [--steps 20] [--sampler dpm++]

Does a run draw what was asked, and how well? Draws with the EMA weights of the newest checkpoint and measures
fidelity by attribute with the judge of the run's shards, Frechet and kernel distance, diversity, nearest
training images and the cleanness of the background. Writes quality.json and quality.html into the run folder
and figures to its TensorBoard. Under torchrun or the deepspeed launcher the ranks share the work:

    deepspeed --num_gpus 8 --module diffcore.evaluate RUN
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase import cli
from diffbase.cli import InputError
from diffcore.evaluation import command
from diffcore.sample import load_run, sampling_of

if TYPE_CHECKING:
    from diffcore.evaluation.judge import Judge
    from diffcore.evaluation.quality import Quality
    from diffcore.sample import TrainedModel


def main(argv: Sequence[str] | None = None) -> None:
    parser = command.parser("diffcore.evaluate", __doc__)
    command.add_run(parser, 2000, "images drawn")
    parser.add_argument("--guidance", type=float, help="guidance scale (default: recommended, or the run's)")
    parser.add_argument("--steps", type=int, help="steps of the sampler (default: likewise)")
    parser.add_argument("--sampler", help="ddim, ddpm, dpm++, dpm++sde or heun (default: likewise)")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights draw")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (default newest)")
    parser.add_argument("--inception", type=Path, metavar="FILE", help="weights of Inception, if at hand")
    parser.add_argument("--out", type=Path, help="folder for quality.json and .html (default: RUN)")
    arguments = parser.parse_args(argv)
    command.check(arguments)
    if not (arguments.run / "config.yaml").exists():
        raise InputError(f"{arguments.run}: not a run folder (no config.yaml)")

    from diffcore import engine
    from diffcore.evaluation import draws, quality

    world = draws.start()
    try:
        model = load_run(arguments.run, arguments.weights, arguments.checkpoint)
        judge = judge_of(model, arguments.judge)
        sampling = sampling_of(model.config, arguments)
        measured = quality.measure(
            model, judge, sampling, world, samples=arguments.samples, seed=arguments.seed,
            inception=arguments.inception,
        )  # fmt: skip
        if world.main:
            _write(arguments.out or arguments.run, arguments.run, arguments.weights, model, measured)
        draws.gather(None, world)  # no rank leaves before all are done
    finally:
        engine.stop()


def judge_of(model: TrainedModel, folder: Path | None) -> Judge | None:
    """The judge of the model's shards; None where they have no labels. InputError if it is not theirs."""
    from diffcore.evaluation import judge

    if not model.schema:
        return None
    data = model.config.data.path
    found = judge.load(folder or judge.folder_of(data), fingerprint=model.fingerprint)
    return found.to(model.device)


def _write(out: Path, run: Path, weights: str, model: TrainedModel, quality: Quality) -> None:
    from rich.console import Console
    from torch.utils.tensorboard import SummaryWriter

    from diffbase.files import write_atomic
    from diffcore.evaluation import report
    from shards.table import Index

    out.mkdir(parents=True, exist_ok=True)
    figures = {"run": str(run), "weights": weights, **quality.figures}
    write_atomic(out / "quality.json", (json.dumps(_finite(figures), indent=1) + "\n").encode())
    data = model.config.data.path
    names = dict(Index.load(data).header.variant_names) if isinstance(data, Path) else {}
    report.write(out / report.FILE, f"Quality of {run.name}", quality, model.schema, names)
    with SummaryWriter(run / "tensorboard") as writer:
        for tag, value in scalars({k: v for k, v in figures.items() if k != "sampling"}).items():
            writer.add_scalar(f"evaluate/{tag}", value, model.step)

    if (fidelity := figures.get("fidelity")) is not None:
        title = f"Fidelity of {run}, step {model.step}, {figures['samples']} samples"
        headings = ("attribute", "as asked", "95 % interval", "judge on real images", "in the mean")
        table = command.table(title, *headings)
        for name, row in fidelity["attributes"].items():
            table.add_row(
                name,
                f"{row['share']:.1%}",
                f"{row['low']:.1%} to {row['high']:.1%}",
                f"{row['judge_on_real_images']['share']:.1%}",
                "yes" if name in fidelity["over"] else "no",
            )
        mean, ceiling = fidelity["mean"], fidelity["ceiling"]
        table.add_section()
        table.add_row(
            f"mean of {len(fidelity['over'])}",
            f"{mean['mean']:.1%}",
            f"{mean['low']:.1%} to {mean['high']:.1%}",
            f"{ceiling['mean']:.1%}",
        )
        Console().print(table)
    others = {name: value for name, value in figures.items() if name not in ("fidelity", "sampling")}
    for name, value in scalars(others).items():
        print(f"{name} {value:.4g}")
    print(f"report: {out / report.FILE}")


def scalars(figures: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested figures as flat ones "a/b"; an interval becomes its middle, and what is nan is left out."""
    flat: dict[str, float] = {}
    for name, value in figures.items():
        if isinstance(value, dict):
            middle = value.get("share", value.get("mean"))
            if "low" in value and isinstance(middle, float):
                flat |= scalars({name: middle}, prefix)
            else:
                flat |= scalars(value, f"{prefix}{name}/")
        elif isinstance(value, float) and not math.isnan(value):
            flat[prefix + name] = value
    return flat


def _finite(tree: Any) -> Any:
    """The same with null for nan, which JSON does not have."""
    if isinstance(tree, dict):
        return {key: _finite(value) for key, value in tree.items()}
    if isinstance(tree, float) and math.isnan(tree):
        return None
    return tree


if __name__ == "__main__":
    cli.run(main)
