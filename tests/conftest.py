"""Shared by all tests: what is left out on this machine is said loudly, at the top of the run."""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Without a GPU DeepSpeed and torch use the CPU; OpenMP threads of several processes would fight for cores.
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "2")


# No test is timed: on a busy machine hypothesis' own deadline would fail a right answer. The same examples,
# so that what passes here passes elsewhere; EXPLORE=1 looks for others.
explore = bool(os.environ.get("EXPLORE"))
settings.register_profile("untimed", deadline=None, derandomize=not explore)
settings.load_profile("untimed")


def _missing_skia() -> str | None:
    try:
        importlib.import_module("skia")
    except ImportError as error:
        return str(error)
    return None


SKIA = _missing_skia()
CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """What a command says for its whole process (``cli.run``) is not for the tests after it."""
    mask, safe = os.umask(0o022), os.environ.get("PYTHONSAFEPATH")
    os.umask(mask)
    yield
    os.umask(mask)
    if safe is None:
        os.environ.pop("PYTHONSAFEPATH", None)


def pytest_report_header() -> list[str]:
    out = []
    if SKIA:
        out.append(f"LEFT OUT: every test that draws avatars ({SKIA}). To run them: make system")
    if not CHROMIUM:
        out.append("LEFT OUT: what is looked at in a browser (no Chromium). To run it: make system-test")
    return out


@pytest.fixture(scope="session")
def memory_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 131,171 parameters to plan and to measure; its shards are not there."""
    path = tmp_path_factory.mktemp("memory") / "small.yaml"
    path.write_text(
        "run: run\ndata: {path: nowhere}\nbatch: {micro: 4, size: 8}\ntrain: {steps: 4}\n"
        "engine: {threads: 1}\n"
        "model: {kind: avatar, channels: [16, 32], attention_levels: [1], heads: 2, tau_tokens: 2}\n"
    )
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SKIA:
        for item in items:
            if item.get_closest_marker("draws"):
                item.add_marker(pytest.mark.skip(reason=f"skia cannot be loaded: {SKIA}; make system"))
