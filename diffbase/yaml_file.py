"""YAML files as trees; a file that is none is one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from diffbase.cli import InputError
from diffbase.system_error import read_bytes


def read(path: Path, missing: str) -> Any:
    """What is in a YAML file. InputError where there is none, which says ``missing``, or it is no YAML."""
    try:
        return yaml.safe_load(read_bytes(path).decode("utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: {missing}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from error
