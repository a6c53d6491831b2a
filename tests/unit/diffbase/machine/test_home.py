"""Where a user's own files lie, and that it is no fault to have no home."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbase.cli import InputError
from diffbase.machine import home
from launch.ask import profile
from launch.job import registry
from shards.remote.cache import Cache, default_folder

NAMES = ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "SLURM_TMPDIR")


@pytest.fixture
def nobody(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A user without HOME and without an entry in passwd, which is what Path.home asks next."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)

    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    return monkeypatch


def test_the_variables_count_where_they_are_absolute(nobody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    nobody.setattr(Path, "home", lambda: tmp_path)
    assert home.state() == tmp_path / ".local/state/diffcore"
    nobody.setenv("XDG_STATE_HOME", "/elsewhere")
    nobody.setenv("XDG_CONFIG_HOME", "not/absolute")
    assert (home.state(), home.config()) == (Path("/elsewhere/diffcore"), tmp_path / ".config/diffcore")


def test_without_a_home_all_goes_on_but_what_needs_one(nobody: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert (home.config(), home.state(), home.cache()) == (None, None, None)
    assert "no home folder" in registry.remember(tmp_path, "1", "box")
    assert (registry.submissions(), registry.excluded("box")) == ([], {})
    assert "plain-gpu" in profile.profiles()
    cache = Cache()  # local shards need none
    with pytest.raises(InputError, match=r"data\.cache: this user has no home folder"):
        _ = cache.folder
    nobody.setenv("SLURM_TMPDIR", "/scratch")
    assert default_folder() == Path("/scratch/diffcore-shards")


def test_a_state_folder_that_cannot_be_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert "file" in registry.remember(tmp_path, "1", "box")
    assert "file" in registry.exclude("box", {"n1": "broken"}, 1)
    assert (registry.submissions(), registry.excluded("box")) == ([], {})


def test_profile_folders_that_may_not_be_entered_are_passed_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After su, HOME may be another user's; root may enter every folder, so that the refusal is made here."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    whole = Path.glob

    def glob(self: Path, pattern: str) -> object:
        if self.is_relative_to(tmp_path):
            raise PermissionError(13, "Permission denied", str(self))
        return whole(self, pattern)

    monkeypatch.setattr(Path, "glob", glob)
    assert "plain-gpu" in profile.profiles()
