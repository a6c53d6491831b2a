"""Whose hands a folder is in. Where the tests are root's, other users are real ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffbase import trust
from diffbase.cli import InputError

STRANGER, OTHER_GROUP = 65534, 65533
root = pytest.mark.skipif(os.geteuid() != 0, reason="only root makes folders of other users")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path


def test_a_new_folder_and_those_above_it_are_the_owners_alone(place: Path) -> None:
    made = trust.own_folder(place / "a" / "b")
    assert [stat.S_IMODE(path.stat().st_mode) for path in (made, made.parent)] == [0o700, 0o700]
    assert trust.own_folder(made, code=True) == made  # and is taken again


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o702])
def test_a_folder_that_all_may_write_is_refused(place: Path, mode: int) -> None:
    (place / "run").mkdir()
    (place / "run").chmod(mode)
    for group in (False, True):
        with pytest.raises(InputError, match="run can be written by everybody"):
            trust.own_folder(place / "run", group=group)


@root
@pytest.mark.parametrize("code", [False, True])
def test_a_strangers_folder_is_refused(place: Path, code: bool) -> None:
    (place / "run").mkdir()
    os.chown(place / "run", STRANGER, STRANGER)
    with pytest.raises(InputError, match=r"run belongs to nobody"):
        trust.own_folder(place / "run", code=code)


@root
def test_the_group_is_trusted_where_the_caller_says_so(place: Path) -> None:
    folder = place / "project" / "run"
    folder.mkdir(parents=True)
    for path in (folder, folder.parent):
        os.chown(path, 0, OTHER_GROUP)
        path.chmod(0o2770)
    line = f"project above it can be written by the group {OTHER_GROUP}.*trust: group"
    with pytest.raises(InputError, match=line):
        trust.check_folder(folder)
    trust.check_folder(folder, group=True)
    folder.parent.chmod(0o755)
    with pytest.raises(InputError, match=f"run can be written by the group {OTHER_GROUP}"):
        trust.check_folder(folder)


def test_a_group_of_the_users_own_counts_as_the_user(place: Path) -> None:
    os.chown(place, -1, os.getgid())
    place.chmod(0o775)
    trust.check_folder(place / "..", code=True)
    if trust._is_private(os.getgid()):
        trust.check_folder(place)


def test_folders_above_that_all_may_write_need_the_sticky_bit(place: Path) -> None:
    above = place / "shared"
    (above / "run").mkdir(parents=True)
    above.chmod(0o1777)
    trust.check_folder(above / "run", code=True)
    above.chmod(0o777)
    with pytest.raises(InputError, match="shared above it can be written by everybody"):
        trust.check_folder(above / "run")
    with pytest.raises(InputError, match="shared above it"):
        trust.own_folder(above / "new" / "run")
    assert not (above / "new").exists()


@root
def test_owners_of_folders_above_count_where_code_is_run(place: Path) -> None:
    above = place / "theirs"
    (above / "run").mkdir(parents=True)
    os.chown(above, STRANGER, STRANGER)
    trust.check_folder(above / "run")
    trust.check_folder(above / "run", code=True, group=True)
    with pytest.raises(InputError, match="theirs above it belongs to nobody"):
        trust.check_folder(above / "run", code=True)


@root
@pytest.mark.parametrize("kind", ["folder", "link"])
def test_what_a_stranger_put_into_a_shared_place_is_refused(place: Path, kind: str) -> None:
    shared, mine = place / "tmp", place / "mine"
    for path in (shared, mine / "run"):
        path.mkdir(parents=True)
    shared.chmod(0o1777)
    bait = shared / "bait"
    if kind == "link":
        bait.symlink_to(mine)
    else:
        (bait / "run").mkdir(parents=True)
    os.chown(bait, STRANGER, STRANGER, follow_symlinks=False)
    with pytest.raises(InputError, match="bait on the way there belongs to nobody"):
        trust.own_folder(bait / "run")
    os.chown(bait, 0, 0, follow_symlinks=False)
    trust.own_folder(bait / "run", code=True)


def test_links_of_our_own_are_followed(place: Path) -> None:
    (place / "disk" / "runs").mkdir(parents=True)
    (place / "home").mkdir()
    (place / "home" / "runs").symlink_to("../disk/runs")
    made = trust.own_folder(place / "home" / "runs" / "x", code=True)
    assert (place / "disk" / "runs" / "x").is_dir() and made == place / "home" / "runs" / "x"
    (place / "disk").chmod(0o777)
    with pytest.raises(InputError, match="disk above it"):
        trust.check_folder(made)


def test_links_that_go_round_are_refused(place: Path) -> None:
    (place / "a").symlink_to("b")
    (place / "b").symlink_to("a")
    with pytest.raises(InputError, match="too many links"):
        trust.own_folder(place / "a" / "run")


def test_a_file_in_its_place_is_named(place: Path) -> None:
    (place / "run").write_text("")
    with pytest.raises(InputError, match="run: not a folder"):
        trust.own_folder(place / "run")


@root
def test_what_a_stranger_left_in_a_folder_of_ours_is_refused(place: Path) -> None:
    for name in ("checkpoints", "samples"):
        (place / name).mkdir(mode=0o755)
    trust.check_entries(place)
    os.chown(place / "samples", STRANGER, STRANGER)
    with pytest.raises(InputError, match="samples belongs to nobody"):
        trust.check_entries(place)
    trust.check_entries(place, group=True)
    os.chown(place / "samples", 0, 0)
    (place / "checkpoints").chmod(0o777)
    with pytest.raises(InputError, match="checkpoints can be written by everybody"):
        trust.check_entries(place, group=True)


@pytest.fixture
def secret(place: Path) -> Iterator[Path]:
    path = place / "secret"
    path.write_text("x")
    path.chmod(0o600)
    trust.check_file(path)
    yield path


def test_a_file_that_others_may_write_is_refused(secret: Path) -> None:
    secret.chmod(0o602)
    with pytest.raises(InputError, match="can be written by everybody"):
        trust.check_file(secret)


@root
def test_a_strangers_file_is_refused(secret: Path) -> None:
    os.chown(secret, STRANGER, STRANGER)
    with pytest.raises(InputError, match="belongs to nobody"):
        trust.check_file(secret)


def test_a_link_is_no_file(secret: Path) -> None:
    (secret.parent / "link").symlink_to(secret)
    with pytest.raises(InputError, match="not a plain file"):
        trust.check_file(secret.parent / "link")


def test_a_folder_that_somebody_makes_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at the folders that are there and the making of those that are not."""
    make = Path.mkdir

    def theirs(folder: Path, mode: int = 0o777, **flags: bool) -> None:
        make(folder, mode, **flags)
        if folder.name == "theirs":
            folder.chmod(0o777)

    monkeypatch.setattr(Path, "mkdir", theirs)
    with pytest.raises(InputError, match=r"theirs above it can be written by everybody"):
        trust.own_folder(tmp_path / "theirs" / "run")
