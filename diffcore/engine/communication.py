"""Watching a communication backend: who waits for the other ranks, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all_single"),
)
"""Methods of DeepSpeed's communication backend that a step may call."""
Watch = Callable[[], AbstractContextManager[None]]


def watch(backend: Any, watched: Watch) -> None:
    """Have ``watched()`` around every collective of ``backend``, and around every wait for one in flight."""
    for name in COLLECTIVES:  # of the class: another run in this process may have set its own
        setattr(backend, name, _watched(getattr(type(backend), name).__get__(backend), watched))


class _Awaited:
    """A collective in flight."""

    def __init__(self, work: Any, watch: Watch) -> None:
        self._work, self._watch = work, watch

    def wait(self, *arguments: Any, **named: Any) -> Any:
        with self._watch():
            return self._work.wait(*arguments, **named)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._work, name)


def _watched(collective: Callable[..., Any], watch: Watch) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        with watch():
            result = collective(*arguments, **named)
        return _Awaited(result, watch) if hasattr(result, "wait") else result

    return call
