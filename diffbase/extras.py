"""Packages that only some commands need: pyproject.toml's extras. One clear line where one is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffbase.cli import InputError


@contextmanager
def extra(name: str, purpose: str) -> Iterator[None]:
    """Around imports that ``pip install 'diffcore[name]'`` makes possible. InputError where one is missing.

    ``purpose``: who needs it, the line's subject. A package that is there but does not load raises as ever.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{purpose} needs {error.name}: pip install 'diffcore[{name}]'") from error
