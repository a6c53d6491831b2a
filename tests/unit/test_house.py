"""The house's rules: which way imports run, who knows which dependency, and what loads without torch."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ROOMS = ["diffbase", "shards", "diffcore", "launch"]  # a room may import itself and the rooms before it
FLOORS = ["config", "engine", "runs", "training", "evaluation"]  # the same, of diffcore's rooms
FILES = sorted(path for room in ROOMS for path in (REPOSITORY / room).rglob("*.py"))
FOLDERS = sorted({path.parent for path in FILES})
COMMANDS = [path for path in FILES if '__name__ == "__main__"' in path.read_text()]
MOST_FILES, MOST_LINES = 14, 80
"""In a folder; in a command, which parses its flags and calls libraries."""

# Dependency -> the only files (or rooms) that may import it.
OWNERS = {
    "submitit": ["launch/"],
    "deepspeed": ["diffcore/engine/"],
    "webdataset": ["shards/"],
    "pynvml": ["diffbase/machine/nvml.py"],
    "skia": ["shards/standin/"],
    "jinja2": ["diffbase/page/"],
    "rich": ["diffbase/tables.py"],
}


@cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module that a file imports anywhere in it, as a dotted name."""
    return frozenset(_imports_of(path))


def _imports_of(path: Path) -> Iterator[str]:
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


MODULES = {name(path).removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in FILES}


def circle(imports: dict[str, set[str]]) -> set[str]:
    """What is left when everything that imports nothing of what is left is taken away, again and again."""
    unseen = dict(imports)
    while leaves := [one for one, imported in unseen.items() if not imported & unseen.keys()]:
        for one in leaves:
            del unseen[one]
    return set(unseen)


def test_no_circles_between_files() -> None:
    """Not among imports inside functions or for types either."""
    left = circle({module: set(imports_of(path)) & MODULES.keys() for module, path in MODULES.items()})
    assert not left, f"these import each other: {sorted(left)}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_no_circles_between_what_is_in_a_folder(folder: Path) -> None:
    """A folder in it counts as one, with all that is inside."""
    prefix = name(folder).replace("/", ".") + "."

    def part(module: str) -> str:
        return module.removeprefix(prefix).split(".")[0] if module.startswith(prefix) else ""

    parts: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        if mine := part(module):
            imported = {part(other) for other in imports_of(path) if other in MODULES}
            parts.setdefault(mine, set()).update(imported - {"", mine})
    left = circle(parts)
    assert not left, f"{name(folder)}: these import each other: {sorted(left)}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_floors_of_diffcore_import_downwards(path: Path) -> None:
    room, *rest = name(path).split("/")
    if room == "diffcore" and rest[0] in FLOORS:
        above = {f"diffcore.{floor}" for floor in FLOORS[FLOORS.index(rest[0]) + 1 :]}
        up = [module for module in imports_of(path) if ".".join(module.split(".")[:2]) in above]
        assert not up, f"{name(path)} imports {up}: the direction is {' <- '.join(FLOORS)}"


@pytest.mark.parametrize("folder", FOLDERS, ids=name)
def test_a_folder_is_a_room(folder: Path) -> None:
    """It says what it is for, and is not full."""
    assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
    files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MOST_FILES


@pytest.mark.parametrize("path", COMMANDS, ids=name)
def test_commands_are_thin_and_nobody_imports_them(path: Path) -> None:
    assert len(path.read_text().splitlines()) < MOST_LINES
    module = name(path).removesuffix(".py").replace("/", ".")
    importers = [other for other in FILES if module in imports_of(other) and other not in COMMANDS]
    assert not importers, f"{importers} import the command {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_dependencies_stay_where_they_are_known(path: Path) -> None:
    for module in imports_of(path):
        owners = OWNERS.get(module.split(".")[0], [""])
        assert name(path).startswith(tuple(owners)), f"{name(path)} imports {module}; only {owners} may"


UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
UNPICKLES = {"all_gather_object", "gather_object", "broadcast_object_list", "scatter_object_list"}


def _names_pickle(node: ast.AST) -> bool:
    named = isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle"
    return named or (isinstance(node, ast.Import | ast.ImportFrom) and "pickle" in ast.unparse(node))


WRITES_A_PICKLE = {"diffcore/memory/exports/memory_viz.py"}
"""For another program, whose format is one."""


@pytest.mark.parametrize("path", FILES, ids=name)
def test_nothing_is_unpickled(path: Path) -> None:
    """Neither a file nor what another process sends: a pickle can run code."""
    imported = imports_of(path)
    if name(path) in WRITES_A_PICKLE:
        used = [ast.unparse(node) for node in ast.walk(ast.parse(path.read_text())) if _names_pickle(node)]
        assert used == ["import pickle", "pickle.dumps"]
        imported -= {"pickle"}
    assert not UNPICKLERS & {module.split(".")[0] for module in imported}
    assert not UNPICKLES & {module.split(".")[-1] for module in imported}
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.Attribute) and node.attr in UNPICKLES), f"line {node.lineno}"
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "weights_only"):
            assert isinstance(node.value, ast.Constant) and node.value.value == (node.arg == "weights_only")


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name in ("diffcore", "launch")], ids=name)
def test_no_module_shadows_another(path: Path) -> None:
    # diffcore/train.py and launch/submit.py are run by path: their folder's names come first for a moment.
    assert path.stem == "__init__" or path.stem not in sys.stdlib_module_names


@pytest.mark.parametrize(
    "module",
    [
        "diffcore",
        "diffcore.api",
        "diffcore.config.tree",
        "shards.schema",
        "shards.table",
        "shards.read",
        "shards.pack",
        "shards.index",
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


@pytest.mark.parametrize("command", ["pack", "merge", "index"])
def test_help_needs_no_library(command: str) -> None:
    """Neither numpy nor pydantic, which take longer to load than all else."""
    code = (
        f"import sys, shards.{command} as command; command.parser()\n"
        "sys.exit(bool({'numpy', 'pydantic', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, timeout=60).returncode == 0


AS_TEXT = {"printable", "one_line", "json_text", "len", "round"}
"""What makes data harmless on a terminal; or a figure of it."""


def _is_text(node: ast.expr) -> bool:
    """Whether nothing in it can act on a terminal, whatever the data: words of ours, and figures."""
    if isinstance(node, ast.JoinedStr):
        return all(map(_is_text, node.values))
    if isinstance(node, ast.FormattedValue):
        spec = node.format_spec
        form = spec.values[-1] if isinstance(spec, ast.JoinedStr) else None
        figure = isinstance(form, ast.Constant) and str(form.value)[-1:] in tuple("defg%,")
        return figure or _is_text(node.value)  # a text has no such form
    if isinstance(node, ast.BinOp):
        return _is_text(node.left) and _is_text(node.right)
    if isinstance(node, ast.IfExp):
        return _is_text(node.body) and _is_text(node.orelse)
    if isinstance(node, ast.Call):
        return ast.unparse(node.func).split(".")[-1] in AS_TEXT
    return isinstance(node, ast.Constant)


@pytest.mark.parametrize("path", FILES, ids=name)
def test_data_is_printed_as_text(path: Path) -> None:
    """By diffbase.line.say, or tables.py: names, paths and other programs' words do not act."""
    if name(path) == "diffbase/line.py":
        return
    nodes = list(ast.walk(ast.parse(path.read_text())))
    calls = [node for node in nodes if isinstance(node, ast.Call)]
    called = [call.func for call in calls]
    handed = [node for node in nodes if isinstance(node, ast.Name) and node.id == "print"]
    assert not [node.lineno for node in handed if node not in called], "print is handed on"
    for call in calls:
        assert ast.unparse(call.func) not in ("sys.stdout.write", "sys.stderr.write"), f"line {call.lineno}"
        if ast.unparse(call.func) == "print":
            bad = [ast.unparse(one) for one in call.args if not _is_text(one)]
            assert not bad, f"line {call.lineno}: {bad}: use diffbase.line.say"


@pytest.mark.parametrize("command", ["launch/submit.py", "diffcore/train.py", "slurm/box.py"])
def test_commands_that_run_by_path_load_their_own_checkout(command: str) -> None:
    """Nothing of ours is imported before it is at the front of the path."""
    before, _, _ = (REPOSITORY / command).read_text().partition("sys.path[")
    assert not re.search(rf"^(from|import) ({'|'.join(ROOMS)})\b", before, re.MULTILINE)


def test_no_two_unit_tests_have_one_name() -> None:
    """pytest collects the first of them alone: their folders are no packages."""
    names = sorted(path.name for path in (REPOSITORY / "tests" / "unit").rglob("test_*.py"))
    assert names == sorted(set(names))


def test_modules_that_are_started_by_name_are_there() -> None:
    """A module that moves takes no string with it."""
    named = re.compile(
        r'(?:"-m",\s+|by_name\()"((?:diffbase|shards|diffcore|launch)[\w.]*)"|module = "(launch[\w.]*)"'
    )
    found = {a or b for path in FILES for a, b in named.findall(path.read_text())}
    assert {"launch.supervise.allreduce", "launch.supervise.probe.rank"} <= found
    missing = [module for module in sorted(found) if importlib.util.find_spec(module) is None]
    assert not missing
