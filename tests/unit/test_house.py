"""The house's rules: which way imports run, who knows which dependency, and what loads without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ["diffbase", "shards", "diffcore", "launch"]  # a room may import itself and the rooms before it
FILES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))

# Dependency -> the only files (or rooms) that may import it.
OWNERS = {
    "submitit": ["launch/"],
    "deepspeed": ["diffcore/engine/"],
    "webdataset": ["shards/"],
    "pynvml": ["diffbase/nvml.py"],
    "skia": ["shards/standin/"],
}


def imports_of(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, as a dotted name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)  # perhaps a module


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_run_one_way(path: Path) -> None:
    room = name(path).split("/")[0]
    above = ROOMS[ROOMS.index(room) + 1 :]
    back = [module for module in imports_of(path) if module.split(".")[0] in [*above, "tests"]]
    assert not back, f"{name(path)} imports {back}: the direction is {' <- '.join(ROOMS)}"


def test_no_circles() -> None:
    """Not among imports inside functions or for types either."""
    modules = {
        name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES
    }
    unseen = {module: set(imports_of(path)) & modules.keys() for module, path in modules.items()}
    while leaves := [module for module, imported in unseen.items() if not imported & unseen.keys()]:
        for module in leaves:
            del unseen[module]
    assert not unseen, f"these import each other: {sorted(unseen)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_dependencies_stay_where_they_are_known(path: Path) -> None:
    for module in imports_of(path):
        owners = OWNERS.get(module.split(".")[0], [""])
        assert name(path).startswith(tuple(owners)), f"{name(path)} imports {module}; only {owners} may"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in ("diffcore", "launch")], ids=name)
def test_no_module_shadows_another(path: Path) -> None:
    # diffcore/train.py and launch/submit.py are run by path: their folder's names come first for a moment.
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize(
    "module",
    [
        "diffcore.config.tree",
        "shards.schema",
        "shards.table",
        "shards.read",
        "shards.pack",
        "launch.ranks",
        "launch.submit",
        "launch.hand_over.submission",
        "launch.supervise.supervisor",
        "launch.supervise.task",
        "launch.jobs",
        "launch.follow.goodput",
    ],
)
def test_loads_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0
