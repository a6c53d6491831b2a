"""The preflight's look at the data: the shards that were submitted, and a part of each that is read."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.exits import RETRYABLE
from diffcore.config.tree import Data
from launch.ask.request import fingerprint_of
from launch.supervise import preflight
from launch.supervise.probe.check_data import check
from shards.table import Index
from tests.support import numerics, small_set


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set.packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture
def copy(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "copy"))


def spoil(folder: Path) -> Path:
    """Cut the first shard of the split train to its head."""
    shard = folder / Index.load(folder).split("train").shards[0].path
    shard.write_bytes(shard.read_bytes()[:100])
    return shard


def test_the_submitted_shards_are_known_again(shards: Path) -> None:
    fingerprint = fingerprint_of(shards)
    assert fingerprint == Index.load(shards).fingerprint
    check(Data(path=shards), fingerprint)
    check(Data(path=shards), None)
    check(Data(path="https://example.org/shards"), fingerprint)  # not looked at here


def test_other_shards_are_told(shards: Path) -> None:
    with pytest.raises(InputError, match=r"other shards than .* \(index \w{12}, not 000000000000\)"):
        check(Data(path=shards), "0" * 64)


def test_what_this_node_cannot_read_is_told(copy: Path, tmp_path: Path) -> None:
    spoil(copy)
    with pytest.raises(InputError, match=r"train"):
        check(Data(path=copy), fingerprint_of(copy))
    with pytest.raises(InputError, match="not found"):
        check(Data(path=tmp_path / "none"), None)
    assert fingerprint_of(tmp_path / "none") is None


def test_the_preflight_says_it_in_one_line(copy: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(numerics.CONFIG.replace("PACKED", str(copy)))
    assert preflight.data(config, fingerprint_of(copy)) is None
    line = preflight.data(config, "0" * 64)
    assert line is not None and line.startswith(f"data.path: {copy} holds other shards")
    shard = spoil(copy)
    line = preflight.data(config, None)
    assert line is not None and shard.name in line and "\n" not in line
    line = preflight.data(config, None, seconds=0.0)
    assert line == "data: not read within 0 s"


def test_a_disk_that_may_come_back_is_no_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = f"import sys; print('error: disk'); sys.exit({RETRYABLE})"
    monkeypatch.setattr(preflight, "by_name", lambda module, code: ["-c", said])
    assert preflight.data(tmp_path / "config.yaml", None) == "data: disk"
