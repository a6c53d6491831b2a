"""shards.verify of an address: the lines and codes of a folder, with one shard at a time on the disk."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.checking import verifier
from shards.remote import fetch
from shards.verify import main
from tests.support.shard_server import Server
from tests.support.tiny_set import Command


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    return tmp_path / "scratch"


def test_sound(server: Server, command: Command, scratch: Path) -> None:
    code, out, err = command(main, server.url, "--jobs", 1)
    *warnings, last = out.splitlines()
    assert (code, err, last) == (0, "", f"{server.url}: sound (30 train, 10 val samples)")
    assert all(": warning: " in line for line in warnings)
    assert set(server.asked.values()) == {1} and not list(scratch.iterdir())


def damage_nothing(folder: Path) -> None:
    pass


def damage_shards(folder: Path) -> None:
    data = bytearray((folder / "train-000000.tar").read_bytes())
    data[1600] ^= 1
    (folder / "train-000000.tar").write_bytes(data)
    os.truncate(folder / "train-000001.tar", 3000)
    (folder / "train-000002.tar").unlink()
    (folder / "val-000000.tar").write_bytes((folder / "val-000000.tar").read_bytes() + bytes(10240))


def damage_table(folder: Path) -> None:
    (folder / "val-samples.npy").write_bytes(bytes((folder / "val-samples.npy").stat().st_size))


def lose_table(folder: Path) -> None:
    (folder / "val-samples.npy").unlink()


def damage_index(folder: Path) -> None:
    (folder / "index.json").write_text("[]")


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize(
    "damage",
    [damage_nothing, damage_shards, damage_table, lose_table, damage_index],
    ids=lambda f: f.__name__,
)
def test_the_same_is_said_as_of_a_folder(
    server: Server, command: Command, damage: Callable[[Path], None], scheme: str
) -> None:
    damage(server.folder)
    url = server.url if scheme == "http" else f"file://{server.folder}"
    code, out, err = command(main, server.folder, "--jobs", 1)
    said = command(main, url, "--jobs", 1)
    assert said == (code, out.replace(str(server.folder), url), err.replace(str(server.folder), url))
    assert code == (damage is not damage_nothing)


def test_a_shard_without_end_is_left_at_a_limit(
    server: Server, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifier, "SLACK", 1000)
    shard = server.folder / "train-000001.tar"
    size = shard.stat().st_size
    os.truncate(shard, 50 << 20)
    code, out, _ = command(main, server.url, "--jobs", 1)
    assert code == 1 and out.startswith("train-000001.tar: ") and f"or more; the index says {size}" in out
    assert out.count("\n") == 1


def test_no_index_no_access_or_a_server_that_is_away(server: Server, command: Command) -> None:
    url = f"{server.url}/a b/ü"  # any path is served
    code, out, _ = command(main, url, "--jobs", 1)
    assert code == 0 and out.endswith(f"{url}: sound (30 train, 10 val samples)\n")
    for trouble, wanted in (("403", 2), ("401", 2)):
        server.trouble["train-000001.tar"] = [trouble]
        code, out, err = command(main, server.url, "--jobs", 1)
        assert code == wanted and f"train-000001.tar: HTTP {trouble}" in err and err.count("\n") == 1
    server.trouble["train-000001.tar"] = ["500"] * fetch.ATTEMPTS
    code, out, err = command(main, server.url, "--jobs", 1)
    assert code == 75 and "gave up after" in err and not out
    server.trouble["train-000001.tar"] = ["500", "drop"]
    assert command(main, server.url, "--jobs", 1)[0] == 0
    (server.folder / "index.json").unlink()
    code, out, err = command(main, server.url)
    assert code == 2 and not out and f"{server.url}/index.json: HTTP 404" in err


def test_the_disk_holds_one_shard_at_a_time(
    server: Server, command: Command, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most: list[int] = []
    look = verifier._faults

    def watched(path: Path, *more: object) -> object:
        most.append(len(list(scratch.glob("*/*.tar"))))
        return look(path, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(verifier, "_faults", watched)
    assert command(main, server.url, "--jobs", 1)[0] == 0
    assert most == [1] * 7


@pytest.mark.slow
def test_several_processes_say_the_same(server: Server, command: Command) -> None:
    damage_shards(server.folder)
    assert command(main, server.url, "--jobs", 2) == command(main, server.url, "--jobs", 1)


def test_addresses_with_spaces_and_letters_of_all_kinds(
    packed: Path, tmp_path: Path, command: Command
) -> None:
    """Of http they are percent-encoded; what is already stays."""
    url = f"file://{tmp_path}/a  b/ü кошка"
    (tmp_path / "a  b").mkdir()
    shutil.copytree(packed, tmp_path / "a  b" / "ü кошка")
    assert command(main, url, "--jobs", 1)[0] == 0
    assert fetch.address("http://h/a b/ü%20c?sig=a b", "x") == "http://h/a%20b/%C3%BC%20c/x?sig=a%20b"
    assert fetch.address("s3://b/a b", "x") == "s3://b/a b/x"
