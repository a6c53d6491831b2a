"""run_access: who may read a run folder, and what of it never."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase import ledger, trust
from diffbase.cli import InputError
from diffbase.locking.lock import Lock
from diffbase.machine.ports import RENDEZVOUS
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.runs import run_folder
from diffcore.runs.run_folder import access, set_access
from launch.job import folder

MODES = {"group": (0o2750, 0o640), "private": (0o700, 0o600)}
OWNERS = [".lock", ".saving", *(f"job/001/{name}" for name in ("code/x.py", "7_submitted.pkl", "job.json"))]
OWNERS += [
    f"job/001/{name}" for name in ("live/secret.json", "environment.json", "config.yaml", "7_submission.sh")
]
READERS = ["metrics.jsonl", "run.json", "heartbeat.json", "samples/real.png", "events.out.tfevents.1"]
READERS += [
    "checkpoints/step-1/COMPLETE",
    "averages/step-00000001.safetensors",
    "stacks/rank-0.txt",
    "job/001/7_0_log.out",
    "job/001/controller.log",
    "job/001/sweep.txt",
]
CONFIG = Path(__file__).resolve().parents[4] / "configs" / "demo.yaml"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with a file of each kind, as private ones are."""
    made = tmp_path / "run"
    made.mkdir(mode=0o700)
    for name in (*OWNERS, *READERS):
        path = made / name
        for place in reversed([*path.parents][: len(path.relative_to(made).parts) - 1]):
            place.mkdir(mode=0o700, exist_ok=True)
        path.write_text("x")
        path.chmod(0o600)
    (made / "config.yaml").write_text("data: {path: /shared/data}\n")
    return made


def test_a_group_reads_what_is_for_people_and_nothing_else(run: Path) -> None:
    set_access(run, "group")
    assert access(run) == "group"
    for name in READERS:
        assert mode(run / name) == 0o640, name
        assert {mode(place) for place in (run / name).parents if place.is_relative_to(run)} == {0o2750}
    assert {mode(run / name) for name in OWNERS} == {0o600}
    assert mode(run / "job/001/code") == mode(run / "job/001/live") == 0o700
    assert [path for path in run.rglob("*") if mode(path) & 0o027] == []  # nobody else, and none may write


def test_what_was_opened_is_closed_again(run: Path) -> None:
    before = {path: mode(path) for path in run.rglob("*")}
    set_access(run, "group")
    set_access(run, "private")
    assert (access(run), mode(run)) == ("private", 0o700)
    assert {path: mode(path) for path in run.rglob("*")} == before | {run / "config.yaml": 0o600}


def test_a_run_within_a_run_is_one_too(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A sweep's points, for which set_access is asked again when they are submitted."""
    for point in ("001", "002/deeper"):
        shutil.copytree(run, run.parent / "copy")
        (run / point).parent.mkdir(mode=0o700, exist_ok=True)
        (run.parent / "copy").rename(run / point)
        (run / point / f"{RENDEZVOUS}7").touch(0o600)
    (run / "002" / ".lock").touch(0o600)
    before = {path: mode(path) for path in run.rglob("*")}
    for point in ("", "001", "002/deeper"):
        set_access(run / point, "group")
    for point in ("", "001", "002/deeper"):
        assert {mode(run / point / name) for name in OWNERS} == {0o600}
        assert {mode(run / point / f"job/001/{name}") for name in ("code", "live")} == {0o700}
        assert {mode(run / point / name) for name in (*READERS, "config.yaml")} == {0o640}
        assert access(run / point) == "group"
    assert {mode(path) for path in run.rglob(".*")} == {0o600}
    assert f"does not get through {run}" not in capfd.readouterr().err  # it opens with its points
    set_access(run, "private")
    configs = {path: 0o600 for path in run.rglob("config.yaml") if "job" not in path.parts}
    assert {path: mode(path) for path in run.rglob("*")} == before | configs


@pytest.mark.parametrize(
    ("settings_", "secret"),
    [
        ("data: {path: 'https://host/data'}", False),
        ("data: {path: 'https://me:secret@host/data'}", True),
        ("data: {path: 'https://host/data?signature=abc'}", True),
        ("password: hunter2", True),
    ],
)
def test_settings_with_credentials_stay_the_owners(run: Path, settings_: str, secret: bool) -> None:
    (run / "config.yaml").write_text(settings_)
    (run / "job/001/sweep.txt").write_text(f"000 {settings_}\n")
    set_access(run, "group")
    assert mode(run / "config.yaml") == mode(run / "job/001/sweep.txt") == (0o600 if secret else 0o640)


def test_no_shipped_config_looks_like_one_with_credentials() -> None:
    assert run_folder.settings_mode(CONFIG.read_text()) == 0o640


def test_links_are_not_followed(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o700)
    (outside / "precious").touch(0o600)
    (run / "link").symlink_to(outside)
    (run / "samples" / "link").symlink_to(outside / "precious")
    set_access(run, "group")
    assert (mode(outside), mode(outside / "precious")) == (0o700, 0o600)


@settings(max_examples=30, deadline=None)
@given(mask=st.integers(0, 0o77), shown=st.booleans())
def test_new_files_are_of_those_who_may_read_the_folder_whatever_the_umask(
    tmp_path_factory: pytest.TempPathFactory, mask: int, shown: bool
) -> None:
    run = tmp_path_factory.mktemp("umask") / "run"
    run.mkdir(mode=0o700)
    set_access(run, "group" if shown else "private")
    before = os.umask(mask)
    try:
        ledger.record(run, "x")
        trust.make_folder(run / "checkpoints" / "step-1")
        with Lock(run / ".lock", shared=True) as lock:
            lock.take()
    finally:
        os.umask(before)
    wanted = MODES["group" if shown else "private"]
    assert (mode(run / "checkpoints"), mode(run / "events.jsonl")) == wanted
    assert mode(run / "checkpoints" / "step-1") == wanted[0]
    assert {mode(path) & 0o077 for path in run.glob(".*")} == {0}


def test_a_group_that_is_none_of_mine_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.chmod
    # As the kernel does for such a group; root, who runs these tests, may set the bit.
    monkeypatch.setattr(Path, "chmod", lambda path, mode: real(path, mode & 0o777))
    with pytest.raises(InputError, match=r"its group .* is none of yours; give it one of yours \(chgrp\)"):
        set_access(run, "group")


def test_a_folder_above_that_is_closed_is_told(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run.parent.chmod(0o711)
    set_access(run, "group")
    closed = trust.closed_above(run)
    said = capfd.readouterr().err
    assert (f"does not get through {closed} (chmod g+x, or o+x)" in said) == (closed is not None)
    set_access(run, "private")
    run.parent.chmod(0o700 if run.parent.stat().st_gid != run.stat().st_gid else 0o600)
    set_access(run, "group")
    assert f"does not get through {run.parent} (chmod" in capfd.readouterr().err


# --- chosen once ---


def config(run: Path, **how: str) -> Config:
    flags = [text for name, value in how.items() for text in (f"--{name}", value)]
    return configure.parse(["--config", str(CONFIG), "--run", str(run), *flags])


def claimed(run: Path, **how: str) -> None:
    run_folder.claim(config(run, **how), {"fingerprint": "f", "size": 8, "schema": []}).close()


def test_a_choice_is_kept_by_what_comes_later(tmp_path: Path) -> None:
    run = tmp_path / "a" / "run"
    claimed(run, run_access="group")
    assert (access(run), mode(run.parent) & 0o077, mode(run / "config.yaml")) == ("group", 0o050, 0o640)
    claimed(run)
    folder.create(run, usual="private")
    assert access(run) == "group"
    claimed(run, run_access="private")
    folder.create(run, usual="group")
    assert (access(run), mode(run)) == ("private", 0o700)


def test_a_second_start_that_is_refused_changes_no_mode(tmp_path: Path) -> None:
    run, data = tmp_path / "run", {"fingerprint": "f", "size": 8, "schema": []}
    with run_folder.claim(config(run), data):
        before = {path: mode(path) for path in (run, *run.rglob("*"))}
        with pytest.raises(InputError, match="another process is training"):
            run_folder.claim(config(run, run_access="group"), data)
        assert {path: mode(path) for path in (run, *run.rglob("*"))} == before
    with run_folder.claim(config(run, run_access="group"), data):  # and the lock was given back
        assert access(run) == "group"


def test_a_new_run_is_private_unless_the_profile_or_the_config_says_group(tmp_path: Path) -> None:
    for number, (asked, usual, wanted) in enumerate(
        [
            (None, None, "private"),
            (None, "group", "group"),
            ("private", "group", "private"),
            ("group", None, "group"),
        ]
    ):
        place = folder.create(tmp_path / str(number), False, asked, usual)  # type: ignore[arg-type]
        assert access(place.run) == wanted
        assert {mode(path) for path in (place.folder, place.folder.parent)} == {MODES[wanted][0]}
        again = folder.create(place.run)
        assert access(again.run) == wanted and mode(again.folder) == MODES[wanted][0]


def test_a_folder_that_a_group_may_read_is_trusted_and_one_that_it_may_write_is_not(tmp_path: Path) -> None:
    run = folder.create(tmp_path / "run", access="group").run
    os.chown(run, -1, 54322) if os.geteuid() == 0 else None
    run.chmod(0o2750)
    trust.check_folder(run, code=True)
    trust.check_entries(run)
    run.chmod(0o2770)
    if os.geteuid() == 0:
        with pytest.raises(InputError, match="can be written by the group 54322"):
            trust.check_folder(run)
