"""The version of the code that runs, not of another copy that is installed beside it."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

from diffbase.files import REPOSITORY

NAME = "diffcore"


def version(root: Path = REPOSITORY) -> str:
    """The version of the code in ``root``: what its pyproject.toml says where it is a checkout or a copy of
    one, else the package that was installed there; "unknown" where neither is."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        if project["name"] == NAME:
            return str(project["version"])
    except (OSError, ValueError, KeyError):
        pass
    for installed in metadata.distributions(name=NAME):
        if Path(str(installed.locate_file(""))).resolve() == root.resolve():
            return installed.version
    return "unknown"
