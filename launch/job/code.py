"""The copy of the code that every life of a job runs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.runs.run_folder import code_version

PACKAGES = ("launch", "diffcore", "shards", "diffbase", "configs", "slurm")


def copy_code(target: Path, repository: Path = REPOSITORY) -> None:
    """Copy the tracked files of the checkout, as they are on the disk, and say which commit that is.

    Where the code is no checkout (an installed package), its Python, YAML, JSON and template files are taken.
    """
    target.mkdir(mode=0o700)
    for name in tracked(repository):
        source = repository / name
        if source.is_file() and not source.is_symlink():
            (target / name).parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            shutil.copyfile(source, target / name)
    (target / "VERSION").write_text(code_version() + "\n")
    if not (target / "diffcore" / "train.py").is_file():
        raise InputError(f"{repository}: holds no diffcore/train.py to copy into the run folder")


def by_name(module: str, code: Path) -> list[str]:
    """The interpreter's arguments to run ``module`` of a copy of the code, which PYTHONPATH names if it can.

    It cannot name a folder with a colon.
    """
    if ":" not in str(code):
        return ["-m", module]
    lines = f"import runpy, sys; sys.path.insert(0, {str(code)!r}); "
    return ["-c", lines + f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"]


def tracked(repository: Path) -> list[str]:
    """Relative paths of the code's files."""
    command = ["git", "-C", str(repository), "ls-files", "-z", "--", *PACKAGES, "pyproject.toml"]
    inside = ["git", "-C", str(repository), "rev-parse", "--show-toplevel"]
    try:
        top = subprocess.run(inside, capture_output=True, text=True, check=True, timeout=30).stdout.strip()
        if Path(top).resolve() == repository.resolve():
            listed = subprocess.run(command, capture_output=True, check=True, timeout=60).stdout
            return [os.fsdecode(name) for name in listed.split(b"\0") if name]
    except (OSError, subprocess.SubprocessError):
        pass
    suffixes = (".py", ".yaml", ".json", ".j2", ".safetensors")
    return [
        path.relative_to(repository).as_posix()
        for package in PACKAGES
        for path in sorted((repository / package).rglob("*"))
        if path.suffix in suffixes
    ]
