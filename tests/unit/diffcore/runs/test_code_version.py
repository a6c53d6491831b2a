"""What a run says of the code that made it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbase.version import VERSION
from diffcore.runs import run_folder


@pytest.mark.parametrize("beside", [[], ["VERSION"], [f"diffcore-{VERSION}.dist-info/"]], ids=str)
@pytest.mark.parametrize("stray", [False, True])
def test_of_a_copy_and_of_an_installed_package(
    beside: list[str], stray: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launcher's copy has VERSION; beside an installed package such a file is a stranger's."""
    installed = any(name.endswith("/") for name in beside)
    for name in beside:
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).write_text("abc+\n")
    if stray and installed:
        (tmp_path / "VERSION").write_text("9.9\n")
    monkeypatch.setattr(run_folder, "REPOSITORY", tmp_path)
    assert run_folder.code_version.__wrapped__() == ("abc+" if "VERSION" in beside else f"diffcore {VERSION}")
