"""Memory anatomy: where the bytes of a run are, measured, beside what the system says of the process.

``diffcore.memory.plan`` predicts it for any ``nn.Module`` (docs/memory-any.md). It is loaded when it is first
used, so this imports no torch; its type is in ``__init__.pyi``.
"""

from importlib import import_module as _import

__all__ = ["plan"]


def __getattr__(name: str) -> object:
    """``plan``, loaded once."""
    if name != "plan":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = _import("diffcore.memory.modules.plan").plan
    globals()[name] = value
    return value
