"""What to draw and with which settings, as a command line and a run say it. Imports no torch."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from diffcore.config import configure
from diffcore.config.tree import Config, Sampling
from diffcore.runs.run_folder import run_of

RECOMMENDED = "sampling.json"
"""In the run folder: the settings to sample with by default."""


class Recommendation(BaseModel):
    """That file; whether a value is allowed, the config says."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    sampler: str = Field(max_length=100)
    steps: int
    guidance: float


def sampling_of(config: Config, arguments: argparse.Namespace) -> Sampling:
    """``sampling_with`` the command line's settings."""
    return sampling_with(config, arguments.run, vars(arguments))


def sampling_with(config: Config, run: Path, given: Mapping[str, Any]) -> Sampling:
    """The run's sampling settings, what a sweep recommended over them, and over both what is ``given``.

    What is None, and what is no field of Sampling, is not given. InputError for a value that is not allowed.
    """
    wanted = {name: given[name] for name in Sampling.model_fields if given.get(name) is not None}
    return configure.replace(config, "sampling", {**recommended(run, wanted), **wanted}).sampling


def recommended_sampling(config: Config, run: Path) -> Sampling:
    """The run's sampling settings, and over them what a sweep recommended."""
    return sampling_with(config, run, {})


def recommended(run: Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Sampler, steps and guidance that ``diffcore.evaluation.sweep`` wrote into the run; empty without.

    Steps are those of its sampler, so they go where another one is ``given``.
    """
    path = run_of(run) / RECOMMENDED
    if not path.exists():
        return {}
    try:
        tree = json_file.read(path, most=1 << 20)
    except InputError as error:
        raise InputError(f"not a recommendation: {error}") from None
    known = validated(Recommendation, tree, f"{path}: not a recommendation").model_dump()
    if given and given.get("sampler", known["sampler"]) != known["sampler"]:
        del known["steps"], known["sampler"]
    return known


def check_seed(seed: int) -> None:
    """InputError for a seed that the random streams do not take."""
    if not isinstance(seed, Integral) or not 0 <= seed < 2**63:
        raise InputError(f"seed {seed}: allowed are whole numbers, 0 to 2**63 - 1")
