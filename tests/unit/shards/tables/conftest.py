"""The same avatars with an index that lists its shards beside it (version 4), whatever their number."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.tables import write
from tests.unit.shards.conftest import MakeSource


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every index that is written is of version 4."""
    monkeypatch.setattr(write, "HELD_SAMPLES", -1)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory, make_source: MakeSource) -> Path:
    return make_source(tmp_path_factory.mktemp("listed") / "source", range(40))


@pytest.fixture(scope="session")
def listed(tmp_path_factory: pytest.TempPathFactory, source: Path, tiny: Callable[..., Settings]) -> Path:
    folder = tmp_path_factory.mktemp("listed") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "HELD_SAMPLES", -1)
        pack(source, folder, tiny())
    return folder


@pytest.fixture
def mine(listed: Path, tmp_path: Path) -> Path:
    """A copy, to damage."""
    return Path(shutil.copytree(listed, tmp_path / "mine"))
