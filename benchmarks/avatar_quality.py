"""python benchmarks/avatar_quality.py [--minutes 10] [--recipes NAME ...] [--out docs/avatar-quality]
    [--rehearse] [--FIELD VALUE]

On a GPU: what configs/avatar.yaml learns of 10,000 stand-in avatars in ten minutes of training, beside the
recipe before it (configs/avatar-adamw.yaml) and that of the model they follow (configs/avatar-original.yaml)
in the same time. Draws and packs the avatars, trains their judge, measures the images a second of each
recipe in a short run, and then trains each for as many steps as fit, to the end of its learning-rate
schedule. Ten times on the way the judge reads 256 images: the images seen until 90 % of them have the hair
colour that was asked for. At the end 2,000 samples: mean fidelity over all 18 attributes, and the headline.

Writes OUT.json, OUT.md and a grid of each recipe, OUT-NAME.png; prints the JSON. The same command goes on
where it was interrupted. Config fields (``--engine.compile true``) go to all recipes. ``--rehearse`` runs
the same program in a minute or two on a CPU, with a small network and few avatars.
"""

from __future__ import annotations

import argparse
import json
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from diffbase import cli  # noqa: E402
from diffbase.files import write_atomic  # noqa: E402
from diffcore.config import configure  # noqa: E402
from diffcore.evaluation.studies import experiments  # noqa: E402

RECIPES = ("avatar", "avatar-adamw", "avatar-original")
GOAL = 0.9
# What makes a rehearsal of it: 16 x 16 images and a network that a CPU trains in seconds.
REHEARSAL = {
    "model.channels": "[16, 32]", "model.attention_levels": "[1]", "model.heads": "2",
    "engine.precision": "fp32", "engine.threads": "1", "batch.size": "16", "optimizer.lr": "3e-3",
    "lr_schedule.warmup_samples": "0", "ema.decay": "0.9", "sampling.steps": "5",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python benchmarks/avatar_quality.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, a recipe (default 10)")
    parser.add_argument("--out", type=Path, default=Path("docs/avatar-quality"), help="what files begin with")
    parser.add_argument("--work", type=Path, help="folder of data and runs (default runs/avatar-quality)")
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=RECIPES)
    parser.add_argument("--rehearse", action="store_true", help="tiny, on a CPU")
    argv = sys.argv[1:] if argv is None else argv
    arguments, fields = parser.parse_known_args(argv)
    small = arguments.rehearse
    work = (arguments.work or REPOSITORY / "runs" / ("rehearsal" if small else "avatar-quality")).resolve()
    minutes = 0.15 if small else arguments.minutes
    data, size, samples = work / "data", 16 if small else 64, 64 if small else 2000
    few: dict[str, Any] = (
        {"count": 400, "judge": ("--epochs", "2", "--width", "8")} if small else {"judge": ()}
    )
    experiments.prepare(data, size, say, avatars=work / "avatars", **few)
    if small:
        # So raw a judge reads nothing well; it is told that it reads the hair colour.
        record = data / "judge" / "judge.json"
        tree = json.loads(record.read_text()) | {"readable": ["hair_color"], "headline": ["hair_color"]}
        tree["accuracy"]["hair_color"]["share"] = 1.0
        write_atomic(record, json.dumps(tree).encode())
        fields = [word for key, value in REHEARSAL.items() for word in (f"--{key}", value)] + fields

    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    found = {}
    for recipe in arguments.recipes:
        run = train(recipe, work, ["--data.path", str(data), *fields], minutes)
        # fmt: off
        experiments.run("-m", "diffcore.evaluate", run, "--samples", str(samples), "--judge", data / "judge")
        experiments.run("-m", "diffcore.sample", "--run", run, "--count", "32",
                        "--out", f"{arguments.out.resolve()}-{recipe}.png")
        # fmt: on
        found[recipe] = measured(run)
        say(json.dumps({recipe: found[recipe]}))
    write_atomic(arguments.out.with_suffix(".json"), (json.dumps(found, indent=1) + "\n").encode())
    write_atomic(arguments.out.with_suffix(".md"), page(found, minutes, arguments.out.name, argv).encode())
    print(json.dumps(found))


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def train(recipe: str, work: Path, fields: Sequence[str], minutes: float) -> Path:
    """Train a recipe for ``minutes`` by its own speed; its run folder."""
    config = REPOSITORY / "configs" / f"{recipe}.yaml"
    run, plan = work / recipe, work / f"{recipe}.json"
    command = ["diffcore/train.py", "--config", config, *fields]
    if not plan.exists():
        short = work / f"{recipe}-speed"
        shutil.rmtree(short, ignore_errors=True)
        # fmt: off
        experiments.run(*command, "--run", short, "--train.steps", "60", "--train.log_every", "10",
                        "--sampling.every", "1000", "--validation.samples", "0", "--validation.drawn", "0",
                        log=work / f"{recipe}-speed.log")
        # fmt: on
        lines = [json.loads(line) for line in (short / "metrics.jsonl").read_text().splitlines()]
        rates = [line["train/images_per_second"] for line in lines if "train/images_per_second" in line]
        rate = median(rates[len(rates) // 2 :])  # the first steps warm up
        batch = configure.load(short / "config.yaml").batch.size
        steps = max(20, round(rate * 60 * minutes / batch))
        shutil.rmtree(short)
        write_atomic(plan, (json.dumps({"images_per_second": rate, "steps": steps}) + "\n").encode())
    steps = json.loads(plan.read_text())["steps"]
    say(f"training {recipe}: {steps:,} steps")
    # fmt: off
    experiments.run(*command, "--run", run, "--train.steps", str(steps), "--train.best", "quality/fidelity",
                    "--train.checkpoint_every", str(max(1, steps // 2)), "--sampling.every", str(steps),
                    "--validation.every", str(max(1, steps // 10)), log=work / f"{recipe}.log")
    # fmt: on
    return run


def measured(run: Path) -> dict[str, Any]:
    """The figures of a trained and evaluated run."""
    quality = json.loads((run / "quality.json").read_text())
    config = configure.load(run / "config.yaml")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    probes = [line for line in lines if "quality/hair_color" in line]
    reached = [line["train/samples"] for line in probes if line["quality/hair_color"] >= GOAL]
    shares = quality["fidelity"]["attributes"].values()
    return {
        "images_seen": config.train.steps * config.batch.size,
        "precision": config.engine.precision,
        "images_per_second": median(
            line["train/images_per_second"] for line in lines if "train/loss" in line
        ),
        "fidelity_of_all_attributes": sum(row["share"] for row in shares) / len(shares),
        "judge_on_real_images": sum(row["judge_on_real_images"]["share"] for row in shares) / len(shares),
        "headline": quality["fidelity"]["mean"],
        "headline_refused": quality["fidelity"]["refused"],
        "headline_over": quality["fidelity"]["over"],
        "corrected_over_all": quality["fidelity"]["all"],
        "hair_color": quality["fidelity"]["attributes"]["hair_color"],
        "images_until_hair_color_90": reached[0] if reached else None,
        "curve": [[line["train/samples"], line["quality/hair_color"]] for line in probes],
        "frechet": quality["distances"]["frechet"],
        "samples": quality["samples"],
    }


def _headline(figures: dict[str, Any]) -> str:
    mean, over = figures["headline"], figures["headline_over"]
    return f"{mean['mean']:.1%} over {len(over)} attributes" if mean else "none"


def page(found: dict[str, dict[str, Any]], minutes: float, name: str, argv: Sequence[str]) -> str:
    """The figures as Markdown; ``argv``: what the program was given."""
    rows = [
        ("images seen", lambda f: f"{f['images_seen']:,} ({f['images_per_second']:,.0f} a second)"),
        ("mean fidelity, all attributes", lambda f: f"{f['fidelity_of_all_attributes']:.1%}"),
        ("the judge on real images", lambda f: f"{f['judge_on_real_images']:.1%}"),
        ("headline fidelity (see docs/quality.md)", _headline),
        ("hair colour as asked", lambda f: f"{f['hair_color']['share']:.1%}"),
        ("images until hair colour reaches 90 %",
         lambda f: f"{n:,}" if (n := f["images_until_hair_color_90"]) else "not reached"),
        ("Frechet distance, the judge's features", lambda f: f"{f['frechet']:.4g}"),
    ]  # fmt: skip
    lines = [
        "# Ten minutes of avatars" if minutes == 10 else f"# Avatars, {minutes:g} minutes",
        "",
        f"Each recipe trained {minutes:g} minutes by its own speed. Made by",
        "",
        f"```\n{shlex.join(['python', 'benchmarks/avatar_quality.py', *argv])}\n```",
        "",
        "| | " + " | ".join(f"`configs/{recipe}.yaml`" for recipe in found) + " |",
        "|---" * (len(found) + 1) + "|",
        *(f"| {label} | " + " | ".join(show(f) for f in found.values()) + " |" for label, show in rows),
        "",
        *(f"![{recipe}]({name}-{recipe}.png)" for recipe in found),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
