"""python benchmarks/speedrun.py CONFIG... [--seeds 3] [--data PLACE] [--judge FOLDER] [--FIELD VALUE]

Recipes against each other, on the same data, with the same judge and the same noise: for seed 0 each config
in turn, then for seed 1, and so on, so that whatever else the machine does meets all of them. Each is a run
of its own, as a user starts it, on all of this machine; at some checkpoints on the way, and at the end,
images are drawn and judged. What a checkpoint cost is in it (images, training FLOPs, CPU seconds;
docs/training.md).

When all is there, a record of each config is added to docs/speedrun.json, where none is ever changed, and
docs/speedrun.md and docs/speedrun.svg are made anew from all of them: fidelity over FLOPs, and a table. The
first config is what the others are measured against, seed by seed. The same command goes on where it was
interrupted. Config fields (``--train.minutes 5``) go to every recipe; a recipe that differs from another in
a field or two is a YAML that ``extends`` it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY)]

from benchmarks.speedrun_page import KEY, page, picture  # noqa: E402
from diffbase import cli  # noqa: E402
from diffbase.cli import InputError  # noqa: E402
from diffbase.files import write_atomic, write_json  # noqa: E402
from diffbase.formats import json_file  # noqa: E402
from diffbase.machine import nvml, ports  # noqa: E402
from diffcore.config import configure  # noqa: E402
from diffcore.config.section import flatten  # noqa: E402
from diffcore.config.tree import Config  # noqa: E402
from diffcore.evaluation.judging.judge import load  # noqa: E402
from diffcore.evaluation.studies import experiments  # noqa: E402
from diffcore.evaluation.studies.estimate import Estimate  # noqa: E402
from diffcore.runs import checkpoint, run_folder  # noqa: E402
from diffcore.runs.stored.record import read_state  # noqa: E402
from launch.ranks import launcher_arguments  # noqa: E402

PLACES = ("run", "seed", "data.path", "data.judge", "data.cache")
"""Of a config what belongs to the machine or the turn, and not to the recipe."""
COSTS = ("images", "flops", "cpu_seconds")
NEVER = "1000000000"


@dataclass(frozen=True)
class Recipe:
    """A config under its file's name, with the fields that all recipes are given."""

    name: str
    path: Path
    config: Config

    def settings(self) -> dict[str, Any]:
        """What it says that is not a default: dotted fields, without places."""
        fields = flatten(self.config.model_dump(mode="json", exclude_defaults=True))
        return {key: value for key, value in fields if key not in PLACES}


def main(argv: Sequence[str] | None = None) -> None:
    """The command line; see ``--help``."""
    a, fields = _flags(argv)
    recipes = read(a.configs, fields)
    index = recipes[0].config.data.path if a.data is None else a.data
    judge = (a.judge or recipes[0].config.data.judge or Path(index) / "judge").resolve()
    if refused := load(judge).refused:  # before any recipe is trained
        raise InputError(f"{judge}: {refused}")
    done: dict[str, list[list[dict[str, Any]]]] = {recipe.name: [] for recipe in recipes}
    for seed, recipe in turns(recipes, a.seeds):
        run = a.out / f"{recipe.name}-seed{seed}"
        train(recipe, seed, run, index, fields, a.points)
        done[recipe.name].append(curve(run, judge, a.samples, a.curve_samples))
        last = done[recipe.name][-1][-1]
        say(f"{recipe.name}, seed {seed}: {last['fidelity']:.1%} of {len(last['over'])} attributes")

    first = [points[-1]["fidelity"] for points in done[recipes[0].name]]
    known, added = records(a.page.with_suffix(".json")), []
    for recipe in recipes:
        run = a.out / f"{recipe.name}-seed0"
        record = record_of(recipe, done[recipe.name], run, judge)
        if recipe is not recipes[0]:
            own = [points[-1]["fidelity"] for points in done[recipe.name]]
            gain = Estimate.of([one - other for one, other in zip(own, first, strict=True)])
            record["against"] = {"recipe": recipes[0].name, "gain": _estimate(gain)}
        added.append(record)
    write(a.page, joined(known, added))
    print(json.dumps(added))


def _flags(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    parser = cli.Parser(prog="python benchmarks/speedrun.py", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("configs", nargs="+", type=Path, help="recipes; the first is the one to beat")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--points", type=int, default=5, help="checkpoints that are judged (default 5)")
    parser.add_argument("--samples", type=int, default=2000, help="images judged in the end (default 2000)")
    parser.add_argument("--curve_samples", type=int, default=500, help="and on the way (default 500)")
    parser.add_argument("--data", help="shards of all recipes (default: as the first config says)")
    parser.add_argument("--judge", type=Path, help="its folder (default: the config's, or beside the shards)")
    parser.add_argument("--out", type=Path, default=Path("runs/speedrun"), help="folder of the runs")
    parser.add_argument("--page", type=Path, default=Path("docs/speedrun.md"), help="what is written")
    a, fields = parser.parse_known_args(argv)
    for name, least, most in (
        ("seeds", 1, 10),
        ("points", 1, 100),
        ("samples", 2, 10**6),
        ("curve_samples", 2, 10**6),
    ):
        if not least <= getattr(a, name) <= most:
            raise InputError(f"--{name} {getattr(a, name)}: allowed are {least} to {most}")
    a.out, a.page = a.out.resolve(), a.page.resolve()
    return a, fields


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def read(paths: Sequence[Path], fields: Sequence[str]) -> list[Recipe]:
    """The recipes. InputError for two of one name, or fields that a config does not have."""
    found = [Recipe(path.stem, path, configure.parse(["--config", str(path), *fields])) for path in paths]
    names = [recipe.name for recipe in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{twice}: two configs of that name; rename one")
    return found


def turns(recipes: Sequence[Recipe], seeds: int) -> Iterator[tuple[int, Recipe]]:
    """Who trains when: every recipe once, then every recipe with the next seed."""
    for seed in range(seeds):
        for recipe in recipes:
            yield seed, recipe


def launch(module: str, *words: str | Path, log: Path) -> None:
    """A module of the toolkit on all of this machine, as ``make demo`` starts it."""
    ranks = launcher_arguments()
    if ranks in ("--num_gpus 1", ""):
        experiments.run("-m", module, *words, log=log)
        return
    port = ("--master_port", str(ports.any_free()))
    experiments.run(
        "-m", "deepspeed.launcher.runner", *ranks.split(), *port, "--module", module, *words, log=log
    )


def train(recipe: Recipe, seed: int, run: Path, data: Path | str, fields: Sequence[str], points: int) -> None:
    """One run to its end, from where it is. InputError where it is of another recipe by now."""
    length = recipe.config.train
    every = f"{60 * length.minutes / points:.3f}s" if length.minutes else str(-(-length.steps // points))
    flags = ["--config", str(recipe.path.resolve()), *fields, "--run", str(run), "--seed", str(seed)]
    flags += ["--data.path", str(data), "--train.checkpoint_every", every, "--train.keep_checkpoints", "1000"]
    # What is drawn and judged on the way is no part of a recipe's cost.
    flags += ["--validation.drawn", "0", "--sampling.every", NEVER]
    wanted = configure.parse(flags)
    if (run / "run.json").is_file() and (other := differing(wanted, run)):
        raise InputError(f"{run}: is of another recipe ({', '.join(other)}); give another --out")
    if not is_done(run, wanted):
        say(f"training {run.name}")
        launch("diffcore.train", *flags, log=run.with_suffix(".log"))


def differing(config: Config, run: Path) -> list[str]:
    """Settings in which the run is another experiment than ``config``, which may leave some open."""
    before = json_file.read(run / "run.json")["identity"]
    now = {key: value for key, value in config.identity().items() if value is not None and value != "auto"}
    return [key for key, value in now.items() if key in before and before[key] != value]


def is_done(run: Path, wanted: Config) -> bool:
    """Whether the run has its last checkpoint."""
    if not (run / "config.yaml").is_file() or not (there := checkpoint.complete(run)):
        return False
    steps = wanted.train.steps or configure.load(run / "config.yaml").train.steps
    return checkpoint.step_of(there[-1]) == steps


def curve(run: Path, judge: Path, samples: int, fewer: int) -> list[dict[str, Any]]:
    """A point for each checkpoint, oldest first: step, cost, fidelity. The last of ``samples`` images."""
    there = checkpoint.complete(run)
    return [
        {
            "step": checkpoint.step_of(folder),
            **read_state(folder).spent,
            **judged(run, checkpoint.step_of(folder), judge, samples if folder == there[-1] else fewer),
        }
        for folder in there
    ]


def judged(run: Path, step: int, judge: Path, samples: int) -> dict[str, Any]:
    """The headline of a checkpoint, measured unless it was."""
    out = run.with_name(f"{run.name}-judged") / f"step-{step:08d}-{samples}-{digest_of(judge)[:8]}"
    if not (out / "quality.json").is_file():
        words = (run, "--checkpoint", str(step), "--samples", str(samples), "--judge", judge, "--out", out)
        launch("diffcore.evaluate", *words, log=out.with_suffix(".log"))
    return headline(json_file.read(out / "quality.json"), judge)


def headline(quality: Mapping[str, Any], judge: Path) -> dict[str, Any]:
    """The one figure of an evaluation, and over which attributes it is. InputError where there is none."""
    fidelity = quality.get("fidelity")
    if fidelity is None or fidelity["mean"] is None:
        raise InputError(f"{judge}: {(fidelity or {}).get('refused') or 'gives no fidelity of these data'}")
    return {"fidelity": fidelity["mean"]["mean"], "over": list(fidelity["over"])}


def digest_of(folder: Path) -> str:
    """Of a judge: all of its files' names and bytes."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def record_of(
    recipe: Recipe, seeds: Sequence[Sequence[Mapping[str, Any]]], run: Path, judge: Path
) -> dict[str, Any]:
    """What is kept of a recipe: ``seeds`` are its curves, seed by seed."""
    last = [points[-1] for points in seeds]
    values = [point["fidelity"] for point in last]
    # By the clock one seed may have a checkpoint more than another: all end with the last one.
    fewest = min(map(len, seeds))
    together = list(zip(*(points[-fewest:] for points in seeds), strict=True))
    return {
        "recipe": recipe.name,
        "settings": recipe.settings(),
        "seeds": len(seeds),
        "fidelity": _estimate(Estimate.of(values)) | {"each": values},
        "over": last[0]["over"],
        **{name: _mean([point[name] for point in last]) for name in COSTS},
        "curve": [
            {name: _mean([point[name] for point in at]) for name in (*COSTS, "fidelity")} for at in together
        ],
        "machine": machine(),
        "ranks": read_state(checkpoint.complete(run)[-1]).world,
        "data": json_file.read(run / "run.json")["data"]["fingerprint"],
        "judge": digest_of(judge),
        "code": run_folder.code_version(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    """JSON has no infinity: the bounds of one seed are None."""
    bounds = {"low": estimate.low, "high": estimate.high}
    return {"mean": estimate.mean} | {k: v if math.isfinite(v) else None for k, v in bounds.items()}


def machine() -> str:
    """In words: the GPUs, or the processor and how many of its cores are this process's."""
    if survey := nvml.survey():
        names = [gpu.name for gpu in survey.gpus]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "CPU")
    return f"{len(os.sched_getaffinity(0))} cores, {model}"


def records(path: Path) -> list[dict[str, Any]]:
    """Those that were kept. InputError for a file that is none."""
    if not path.exists():
        return []
    found = json_file.read(path)
    if not isinstance(found, list) or not all(
        isinstance(one, dict) and one.keys() >= set(KEY) for one in found
    ):
        raise InputError(f"{path}: is no list of records")
    return found


def joined(known: Sequence[dict[str, Any]], added: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that were known, as they are, and what is new: the same runs collected again are not."""
    result = list(known)
    for record in added:
        if all(any(record[key] != other[key] for key in KEY) for other in result):
            result.append(record)
    return result


def write(out: Path, found: Sequence[Mapping[str, Any]]) -> None:
    """The records, and page and picture of them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_json(out.with_suffix(".json"), list(found))
    write_atomic(out.with_suffix(".svg"), picture(found).encode())
    write_atomic(out, page(found, out.with_suffix(".svg").name).encode())


if __name__ == "__main__":
    cli.run(main)
