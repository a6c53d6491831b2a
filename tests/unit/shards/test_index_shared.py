"""One index serves all readers of a process, for as long as its files are those that were checked."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.runs.data import first_samples, held_out_samples, training_reader
from shards import table
from shards.header import FILE
from shards.read import ShardReader
from shards.table import Index
from tests.support import small_set


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The splits whose tables were loaded, in order."""
    names: list[str] = []
    load = table._load_split

    def counted(folder: Path, name: str, *given: object) -> table.Split:
        names.append(name)
        return load(folder, name, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "_load_split", counted)
    return names


def test_a_run_loads_its_tables_once(tmp_path: Path, loaded: list[str]) -> None:
    values = {"data": {"path": small_set.packed(tmp_path, 40)}, "run": tmp_path / "run"}
    config = configure.load(REPOSITORY / "configs" / "demo.yaml", values)
    loaded.clear()
    with training_reader(config):
        for read in (first_samples(config, "val", 2), held_out_samples(config, 2)):
            assert len(read.keys) == 2
    assert sorted(loaded) == ["train", "val"]


def test_it_goes_with_its_last_user(packed: Path, loaded: list[str]) -> None:
    first, second = ShardReader(packed, "train"), ShardReader(packed, "val")
    assert first.index is second.index
    del first, second
    Index.shared(packed)
    assert len(loaded) == 4


def swapped(folder: Path) -> None:
    """Another file in the table's place, of its size, one bit of it another one."""
    data = bytearray((folder / "train-samples.npy").read_bytes())
    data[-1] ^= 1
    (folder / "new").write_bytes(data)
    (folder / "new").replace(folder / "train-samples.npy")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (swapped, "damaged"),
        (lambda folder: (folder / "val-samples.npy").unlink(), "missing"),
        (lambda folder: (folder / FILE).write_text("{}"), "not an index"),
        (lambda folder: (folder / FILE).unlink(), "not found"),
    ],
)
def test_what_changed_is_checked_again(copy: Path, change: Callable[[Path], None], told: str) -> None:
    held = Index.shared(copy)
    change(copy)
    with pytest.raises(InputError, match=told):
        Index.shared(copy)
    assert len(held.split("train"))  # its own table stays as it was


def test_load_shares_nothing(packed: Path) -> None:
    held = Index.shared(packed)
    assert Index.load(packed) is not held
    np.testing.assert_array_equal(Index.load(packed).split("train").samples, held.split("train").samples)


def test_a_name_that_leads_elsewhere_now(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "ab":
        shutil.copytree(packed, tmp_path / name / "data")
    monkeypatch.chdir(tmp_path / "a")
    held = Index.shared(Path("data"))
    monkeypatch.chdir(tmp_path / "b")
    assert Index.shared(Path("data")) is not held
