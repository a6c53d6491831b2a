"""``--sweep FILE``: one job array over config values.

A YAML of dotted config fields, each with a list of values: all combinations are run. A list of such mappings
with single values gives the points one by one. Every point is a run of its own, ``RUN/000``, ``RUN/001``, ...

    optimizer.lr: [1.0e-4, 3.0e-4]
    model.heads: [1, 4]
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffbase.cli import InputError
from diffbase.formats import yaml_file
from diffcore.config import configure
from diffcore.config.tree import Config

MOST = 1000
FIELD = re.compile(r"(?!(?:run|config|help|local_rank)$)[a-z][a-z0-9_.]*")
"""A config field as a flag has it; the others are no fields, or not a sweep's to set."""


@dataclass(frozen=True)
class Point:
    """One run: its config, and what of it the sweep set."""

    config: Config
    values: Mapping[str, Any] = field(default_factory=dict)


def load(path: Path, config: Path, overrides: Sequence[str]) -> list[Point]:
    """Every point of the sweep in ``path`` over the config and its overrides. InputError if one is wrong."""
    found = _points(yaml_file.read(path, "no such sweep file"), path)
    # All combinations of long lists would fill the memory.
    chosen = list(itertools.islice(found, MOST + 1))
    if not 2 <= len(chosen) <= MOST:
        count = str(len(chosen)) if len(chosen) < 2 else f"more than {MOST}"
        raise InputError(f"{path}: a sweep has 2 to {MOST} points, this one {count}")
    base = configure.parse(["--config", str(config), *overrides], prog="submit.py")
    points = []
    for i, values in enumerate(chosen):
        flags = [f"--{key}={_written(value)}" for key, value in values.items()]
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
                raise InputError(f"{path}: {key}: expected a list of values, got {values!r:.200}")
        for combination in itertools.product(*tree.values()):
            yield _checked(dict(zip(tree, combination, strict=True)), path)
    elif isinstance(tree, list):
        for point in tree:
            if not isinstance(point, dict) or not point:
                raise InputError(f"{path}: expected mappings of config fields, got {point!r:.200}")
            yield _checked(point, path)
    else:
        raise InputError(f"{path}: expected config fields with lists of values, or a list of mappings")


def _checked(point: dict[Any, Any], path: Path) -> dict[str, Any]:
    for key in point:
        if not isinstance(key, str) or not FIELD.fullmatch(key):
            raise InputError(
                f"{path}: {key!r:.200}: a dotted config field is wanted; every point has its own run"
            )
    return point


def _written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
