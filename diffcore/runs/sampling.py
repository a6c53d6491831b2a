"""What to draw and with which settings, as a command line and a run say it. Imports no torch."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.tree import Config, Sampling
from diffcore.runs.run_folder import run_of
from shards.schema import Attribute

RECOMMENDED = "sampling.json"
"""In the run folder: the settings to sample with by default."""


def parse_wanted(settings: Sequence[str], schema: Sequence[Attribute]) -> dict[str, int]:
    """``name=value`` strings -> {name: value}. InputError with what is allowed."""
    variants = {a.name: a.variants for a in schema}
    wanted = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in variants:
            raise InputError(f"--set {setting}: unknown attribute {name!r}; allowed: {', '.join(variants)}")
        if not value.isascii() or not value.isdigit() or int(value) >= variants[name]:
            raise InputError(f"--set {setting}: {name} must be a whole number, 0 to {variants[name] - 1}")
        wanted[name] = int(value)
    return wanted


def sampling_of(config: Config, arguments: argparse.Namespace) -> Sampling:
    """The run's sampling settings, what a sweep recommended over them, and the command line's over both."""
    given = {
        name: value for name in Sampling.model_fields if (value := getattr(arguments, name, None)) is not None
    }
    return configure.replace(config, "sampling", {**recommended(arguments.run, given), **given}).sampling


def recommended_sampling(config: Config, run: Path) -> Sampling:
    """The run's sampling settings, and over them what a sweep recommended."""
    return configure.replace(config, "sampling", recommended(run)).sampling


def recommended(run: Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Sampler, steps and guidance that ``diffcore.evaluation.sweep`` wrote into the run; empty without.

    Steps are those of its sampler, so they go where another one is ``given``.
    """
    path = run_of(run) / RECOMMENDED
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text())
        known = {name: tree[name] for name in ("sampler", "steps", "guidance")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a recommendation ({type(error).__name__}: {error})") from error
    if given and given.get("sampler", known["sampler"]) != known["sampler"]:
        del known["steps"], known["sampler"]
    return known


def check_seed(seed: int) -> None:
    """InputError for a seed that the random streams do not take."""
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: allowed are 0 to 2**63 - 1")


def check_grid(out: Path, run: Path) -> None:
    """InputError where a grid and the JSON beside it cannot or must not be written to ``out``."""
    if out.suffix.lower() != ".png":
        raise InputError(f"--out {out}: the grid is a PNG; give a name that ends in .png")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: folder {out.parent} does not exist")
    if out.resolve().parent == run.resolve():
        raise InputError(f"--out {out}: its JSON could replace one of the run's; use another folder")
