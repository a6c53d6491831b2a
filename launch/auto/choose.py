"""What ``submit --auto`` chooses: among what fits the profile's GPUs the fastest, of a range of nodes those
that are done first by the queue's own forecast. Imports no torch.

The command line's settings stay, and of the config its precision, offloading and global batch. ZeRO stage,
micro batch and checkpointing are chosen, and with them the buckets' sizes (diffcore/config/buckets.py).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffbase.line import say
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.memory import promise
from diffcore.memory.fitting.command import flags as as_flags
from launch.ask.card import needed
from launch.ask.fits import PATIENCE
from launch.ask.spec import JobSpec
from launch.ask.sweep import Point
from launch.hand_over import submission
from launch.scheduler import client

CHOSEN = ("zero", "checkpointing")
"""Fields of ``engine`` that are chosen where the command line has none."""
STAY = ("precision", "offload")
"""And those that are as the config has them: what a run computes in, and on."""


@dataclass(frozen=True)
class Size:
    """A number of nodes, what fits there best, and when the queue would start it."""

    row: dict[str, Any]
    """Of ``fit``'s answer."""
    start: float | None = None
    """Seconds since 1970, as Slurm forecasts; None: not known."""
    refused: str = ""
    """Slurm's words, where it would not take such a job."""

    @property
    def nodes(self) -> int:
        """How many."""
        return int(self.row["nodes"])


def choose(
    flags: Namespace, points: Sequence[Point], spec: JobSpec, overrides: Sequence[str], here: bool
) -> tuple[list[Point], JobSpec, dict[str, Any]]:
    """The run and the job with what was chosen in them, and the promise (``diffcore.memory.promise``).

    Says all of it in a few lines. InputError where nothing fits, or Slurm takes no such job.
    """
    if flags.sweep:
        raise InputError("--auto chooses for one run: without --sweep")
    if not spec.gpus_per_node:
        raise InputError("--auto chooses for GPUs: give --gpus-per-node")
    config = points[0].config
    held = held_by(flags.config, overrides)
    tree = fit(config, spec, held)
    now = round(time.time())
    asks = not (spec.cluster.is_local or here) and shutil.which("sbatch") is not None

    def sized(row: dict[str, Any]) -> Size:
        if not asks:
            return Size(row)
        try:
            said = submission.test_only(
                [Point(with_row(config, row))], of_size(spec, row["nodes"]), config.run
            )
        except InputError as error:
            return Size(row, refused=str(error))
        return Size(row, client.start_in(said))

    sizes = [sized(row) for row in tree["by_nodes"]]
    size = first_done(config, sizes, now, strict=not flags.dry_run)
    made = promised(config, tree, size, sizes, now)
    tell(config, tree, made, held)
    return [Point(with_row(config, size.row))], of_size(spec, size.nodes), made


def held_by(config: Path, overrides: Sequence[str]) -> list[str]:
    """Settings that the command line gives, of those that would be chosen: dotted names."""
    _, over = configure.command_line(["--config", str(config), *overrides])
    engine, batch = over.get("engine", {}), over.get("batch", {})
    return [f"engine.{n}" for n in CHOSEN if n in engine] + ["batch.micro"] * ("micro" in batch)


def fit(config: Config, spec: JobSpec, held: Sequence[str]) -> dict[str, Any]:
    """``diffcore fit``'s answer for the profile's GPUs, by a process of its own, which loads torch."""
    values = config.model_dump(mode="json", include={"engine", "batch"})
    stays = [*held, *(f"engine.{name}" for name in STAY)]
    pairs = {name: values[name.split(".")[0]][name.split(".")[1]] for name in stays}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(config.to_yaml())
        command = [sys.executable, "-m", "diffcore.memory", "fit", "--config", str(path), "--json"]
        size = ["--gpu", needed(spec.cluster).name, "--nodes", f"{spec.nodes_min}-{spec.nodes}"]
        size += ["--gpus-per-node", str(spec.gpus_per_node), "--top", "1"]
        try:
            done = subprocess.run(
                [*command, *size, *as_flags(pairs)],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                timeout=PATIENCE,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"--auto: the plan took more than {PATIENCE} s") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no plan, and no word why"]
        raise InputError(f"--auto: {said[-1].removeprefix('error: ')}")
    tree: dict[str, Any] = json.loads(done.stdout)
    return tree


def with_row(config: Config, row: dict[str, Any]) -> Config:
    """The config with a candidate's settings."""
    engine = {name: row[name] for name in (*CHOSEN, *STAY)}
    return configure.changed(config, {"engine": engine, "batch": {"micro": row["micro_batch"]}})


def of_size(spec: JobSpec, nodes: int) -> JobSpec:
    """The job on exactly so many nodes: a range is what is chosen from."""
    return spec.model_copy(update={"nodes": nodes, "nodes_min": nodes})


def first_done(config: Config, sizes: Sequence[Size], now: float, strict: bool = True) -> Size:
    """The size whose run ends first, of two that end in the same minute the smaller; of a run of given
    minutes that which starts first, of two the faster. InputError where Slurm refuses all, if ``strict``.
    """
    able = [size for size in sizes if not size.refused]
    if not able and strict:
        raise InputError(sizes[0].refused)
    able = able or list(sizes)
    if any(size.start is not None for size in able):
        able = [size for size in able if size.start is not None]

    def order(size: Size) -> tuple[float, float]:
        waits = max(0.0, (size.start or now) - now)
        rate = float(size.row["images_per_second"])
        if config.train.steps:
            return (waits + seconds_of(config, rate)) // 60, size.nodes
        return waits // 60, -rate

    return min(able, key=order)


def seconds_of(config: Config, rate: float) -> float:
    """How long the steps of the whole run take at ``rate`` images a second; of train.minutes these."""
    if config.train.minutes is not None:
        return 60 * config.train.minutes
    return config.train.steps * config.batch.size / rate


def promised(
    config: Config, tree: dict[str, Any], size: Size, sizes: Sequence[Size], now: float
) -> dict[str, Any]:
    """The promise as a tree."""
    row = size.row
    rates = {each.nodes: each.row["images_per_second"] for each in sizes}
    return {
        "schema": promise.SCHEMA,
        "card": tree["card"]["name"],
        "nodes": size.nodes,
        "world": size.nodes * row["gpus_per_node"],
        "zero": row["zero"],
        "checkpointing": row["checkpointing"],
        "micro_batch": row["micro_batch"],
        "accumulation": row["accumulation"],
        "bucket_elements": row["bucket_elements"],
        "planned_bytes": row["planned_bytes"],
        "peak_bytes": row["peak_bytes"],
        "usable_bytes": tree["card"]["usable_bytes"],
        "images_per_second": row["images_per_second"],
        "seconds": seconds_of(config, row["images_per_second"]),
        "timed": row["timed"],
        "submitted": now,
        "start": size.start,
        "sizes": [
            {"nodes": each.nodes, "images_per_second": rates[each.nodes], "start": each.start,
             "refused": each.refused or None}
            for each in sizes
        ],
    }  # fmt: skip


def tell(config: Config, tree: dict[str, Any], made: dict[str, Any], held: Sequence[str]) -> None:
    """What was chosen and why, in a few lines."""
    gpus = f"{made['nodes']} x {made['world'] // made['nodes']} {made['card']}"
    micro = f"{made['micro_batch']} (x {made['accumulation']})"
    say(
        f"auto: {gpus}: engine.zero {made['zero']}, engine.checkpointing {made['checkpointing']}, "
        f"batch.micro {micro}, buckets of {made['bucket_elements']:,} elements"
    )
    planned, room = (made[name] / 2**20 for name in ("planned_bytes", "usable_bytes"))
    rate = f"{made['images_per_second']:,.4g} images/s {made['timed']}, {tree['times']}"
    say(f"auto: the fastest that fits: {planned:,.0f} of {room:,.0f} MiB are planned a GPU; {rate}")
    stay = [f"{name} (command line)" for name in held]
    stay += [f"engine.{name} {getattr(config.engine, name)} (config)" for name in STAY]
    say(f"auto: as given: {', '.join(stay)}")
    for size in made["sizes"] if len(made["sizes"]) > 1 or made["start"] else []:
        takes = seconds_of(config, size["images_per_second"])
        when = promise.when(size["start"]) if size["start"] else "at a time that Slurm does not say"
        words = f"would start {when}, and train {promise.clock(takes)}"
        chosen = " <- chosen" if size["nodes"] == made["nodes"] else ""
        nodes = f"{size['nodes']} node{'s' if size['nodes'] > 1 else ''}"
        say(f"auto: {nodes}: {size['refused'] or words}{chosen}")
