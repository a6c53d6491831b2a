"""``--sweep FILE``: one job array over config values.

A YAML of dotted config fields, each with a list of values: all combinations are run. A list of such mappings
with single values gives the points one by one. Every point is a run of its own, ``RUN/000``, ``RUN/001``, ...

    optimizer.lr: [1.0e-4, 3.0e-4]
    model.heads: [1, 4]
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbase import yaml_file
from diffbase.cli import InputError
from diffcore.config import configure
from diffcore.config.tree import Config

MOST = 1000


@dataclass(frozen=True)
class Point:
    """One run: its config, and what of it the sweep set."""

    config: Config
    values: Mapping[str, Any] = field(default_factory=dict)


def load(path: Path, config: Path, overrides: Sequence[str]) -> list[Point]:
    """Every point of the sweep in ``path`` over the config and its overrides. InputError if one is wrong."""
    chosen = list(_points(yaml_file.read(path, "no such sweep file"), path))
    if not 2 <= len(chosen) <= MOST:
        raise InputError(f"{path}: a sweep has 2 to {MOST} points, this one {len(chosen)}")
    base = configure.parse(["--config", str(config), *overrides], prog="submit.py")
    points = []
    for i, values in enumerate(chosen):
        flags = [word for key, value in values.items() for word in (f"--{key}", _written(value))]
        run = ["--run", str(base.run / f"{i:03d}")]
        try:
            parsed = configure.parse(["--config", str(config), *overrides, *flags, *run], prog="submit.py")
        except InputError as error:
            raise InputError(f"{path}: point {i}: {error}") from error
        points.append(Point(parsed, values))
    return points


def _points(tree: Any, path: Path) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict) and tree:
        for key, values in tree.items():
            if not isinstance(values, list) or not values:
                raise InputError(f"{path}: {key}: expected a list of values, got {values!r}")
        for combination in itertools.product(*tree.values()):
            yield _checked(dict(zip(tree, combination, strict=True)), path)
    elif isinstance(tree, list):
        for point in tree:
            if not isinstance(point, dict) or not point:
                raise InputError(f"{path}: expected mappings of config fields, got {point!r}")
            yield _checked(point, path)
    else:
        raise InputError(f"{path}: expected config fields with lists of values, or a list of mappings")


def _checked(point: dict[Any, Any], path: Path) -> dict[str, Any]:
    for key in point:
        if not isinstance(key, str) or key == "run":
            raise InputError(f"{path}: {key!r}: a dotted config field is wanted; every point has its own run")
    return point


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
