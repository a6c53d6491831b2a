"""Where shipped files are found, and what a config's name and its relative paths mean."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbase import shipped
from diffbase.files import REPOSITORY


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The place of shipped files in an installed package; the current folder is ``work`` beside it."""
    folder = tmp_path / "site" / "diffbase" / "_shipped"
    (folder / "configs" / "experiments").mkdir(parents=True)
    for name in ("demo", "experiments/one"):
        (folder / "configs" / f"{name}.yaml").touch()
    monkeypatch.setattr(shipped, "packaged", lambda: folder)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def test_a_checkout_has_its_own() -> None:
    assert shipped.packaged() is None
    assert shipped.shipped("configs") == REPOSITORY / "configs"
    assert shipped.workplace() == REPOSITORY


def test_a_wheel_s_configs_are_anchored_in_the_current_folder(wheel: Path) -> None:
    here = Path.cwd()
    assert shipped.workplace() == here
    assert shipped.anchor(wheel / "configs" / "demo.yaml") == here / "configs"
    assert shipped.anchor(wheel / "configs" / "experiments" / "one.yaml") == here / "configs" / "experiments"
    assert shipped.anchor(here / "mine.yaml") == here


def test_a_link_s_paths_start_where_it_lies(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "real.yaml").touch()
    link = tmp_path / "link.yaml"
    link.symlink_to(tmp_path / "far" / "real.yaml")
    assert shipped.anchor(link) == tmp_path.resolve()


@pytest.mark.parametrize("name", ["demo", "demo.yaml", "configs/demo", "configs/demo.yaml"])
def test_names_of_a_shipped_config(wheel: Path, name: str) -> None:
    assert shipped.find_config(Path(name)) == wheel / "configs" / "demo.yaml"


@pytest.mark.parametrize("name", ["demo.json", "other", "/demo", "../demo", "configs/../demo"])
def test_no_names_of_one(wheel: Path, name: str) -> None:
    assert shipped.find_config(Path(name)) == Path(name)


def test_a_file_comes_before_a_name_and_a_folder_does_not(wheel: Path) -> None:
    Path("demo").mkdir()
    assert shipped.find_config(Path("demo")) == wheel / "configs" / "demo.yaml"
    Path("demo.yaml").touch()
    assert shipped.find_config(Path("demo.yaml")) == Path("demo.yaml")


def test_the_hint_names_what_is_not_an_experiment(wheel: Path) -> None:
    assert shipped.config_hint() == "by name there are demo"
