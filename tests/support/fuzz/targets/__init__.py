"""One module a kind of input, each with ``target()``, which makes its Target."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from tests.support.fuzz.target import Target


def names() -> list[str]:
    """The kinds there are."""
    return sorted(module.name for module in iter_modules(__path__))


def load(name: str) -> Target:
    """The target of that name."""
    target: Target = import_module(f"{__name__}.{name}").target()
    return target
