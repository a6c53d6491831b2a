"""The data section: local folders and URLs, and what makes a stream another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.runs.data import training_reader

DEMO = REPOSITORY / "configs" / "demo.yaml"


def test_a_url_stays_one_and_a_folder_becomes_a_path() -> None:
    for given in ("https://host/data?sig=1", "s3://bucket/data"):
        loaded = configure.parse(["--config", str(DEMO), "--data.path", given])
        assert loaded.data.path == given
        assert configure.replace(loaded, "data", {"threads": 1}).data.path == given
    assert isinstance(configure.load(DEMO).data.path, Path)


def test_another_stream_is_another_experiment() -> None:
    base = configure.load(DEMO)
    for change in ({"order": "block"}, {"tail": "drop"}, {"on_error": "replace"}, {"flip": True}):
        assert configure.replace(base, "data", change).identity() != base.identity()
    placed = {"threads": 1, "prefetch": 1, "cache": Path("/x"), "cache_bytes": 1, "path": Path("/y")}
    assert configure.replace(base, "data", placed).identity() == base.identity()


def test_refusals() -> None:
    for change in ({"order": "random"}, {"tail": "pad"}, {"threads": 0}, {"cache_bytes": 0}):
        with pytest.raises(InputError, match=f"data.{next(iter(change))}"):
            configure.replace(configure.load(DEMO), "data", change)
    with pytest.raises(InputError, match="refused"):
        training_reader(configure.parse(["--config", str(DEMO), "--data.path", "reference://x"]))
