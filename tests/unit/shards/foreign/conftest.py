"""Thirty samples in three tars, each of another format."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.foreign_tars import FORMATS, write_numbers


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """Thirty samples in three tars."""
    for k, form in enumerate(FORMATS):
        write_numbers(tmp_path / "tars" / f"{k}.tar", range(10 * k, 10 * k + 10), form=form)
    return tmp_path / "tars"
