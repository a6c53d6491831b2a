"""Shared by all tests: what is left out on this machine is said loudly, at the top of the run."""

from __future__ import annotations

import importlib
import os

import pytest
from hypothesis import settings

# Without a GPU DeepSpeed and torch use the CPU; OpenMP threads of several processes would fight for cores.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "2")


# No test is timed: on a busy machine hypothesis' own deadline would fail a right answer.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def _missing_skia() -> str | None:
    try:
        importlib.import_module("skia")
    except ImportError as error:
        return str(error)
    return None


SKIA = _missing_skia()


def pytest_report_header() -> str | None:
    if SKIA:
        return f"LEFT OUT: every test that draws avatars ({SKIA}). To run them: make system"
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SKIA:
        for item in items:
            if item.get_closest_marker("draws"):
                item.add_marker(pytest.mark.skip(reason=f"skia cannot be loaded: {SKIA}; make system"))
