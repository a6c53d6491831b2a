"""What ships with the code and is not code: configs, DeepSpeed's JSONs, cluster profiles.

In a checkout, or a copy of one that a job runs, it lies where people edit it: ``configs/`` and ``slurm/``.
The wheel carries both inside this package (pyproject.toml, force-include).
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from pathlib import Path

from diffbase.files import REPOSITORY


@cache
def packaged() -> Path | None:
    """The wheel's copy; None in a checkout, which has its own."""
    folder = Path(str(files("diffbase"))) / "_shipped"
    return folder if folder.is_dir() else None


def shipped(*parts: str) -> Path:
    """The path of what ships as ``configs/...`` or ``slurm/...``."""
    return (packaged() or REPOSITORY).joinpath(*parts)


def workplace() -> Path:
    """Where shipped configs have ``data/`` and ``runs/``: the checkout, or of a wheel the current folder."""
    return Path.cwd() if packaged() else REPOSITORY


def anchor(file: Path) -> Path:
    """The folder that a config's relative paths start from: its own.

    Of a config in the wheel, whose folder is nobody's to write into, as if it lay in ``./configs``.
    """
    folder = file.parent.resolve()  # of a link its own: not where it leads
    inside = packaged()
    if inside and folder.is_relative_to(inside.resolve()):
        return workplace() / folder.relative_to(inside.resolve())
    return folder


def config_names() -> list[str]:
    """What ``--config`` takes by name: ``demo``, ``experiments/one-hot``, ..."""
    folder = shipped("configs")
    return sorted(path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml"))


def config_hint() -> str:
    """The names for a message: those of the experiments are left out."""
    return "by name there are " + ", ".join(name for name in config_names() if "/" not in name)


def find_config(path: Path) -> Path:
    """The file that ``--config`` means: ``path`` itself, else the shipped one of that name.

    ``demo``, ``demo.yaml`` and ``configs/demo.yaml`` are names of one. What is neither stays as it is.
    """
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    return path if path.is_file() or name not in config_names() else shipped("configs", f"{name}.yaml")
