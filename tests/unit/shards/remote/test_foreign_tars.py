"""Other people's tars behind a server, indexed here or there."""

from __future__ import annotations

import tempfile
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest

from diffbase.cli import InputError
from shards.foreign import checker
from shards.foreign.indexer import index
from shards.header import FILE
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.remote import fetch
from shards.remote.cache import Cache
from shards.sources.base import AS_IT_IS
from shards.sources.tars import stream
from shards.verify import main as verify
from tests.support.foreign_tars import write_numbers
from tests.support.shard_server import Server
from tests.support.tiny_set import Command

TINY = Settings(size=5, val=0.0)


@pytest.fixture
def urls(server: Server) -> list[str]:
    """Two tars behind the server."""
    for k in range(2):
        write_numbers(server.folder / f"f{k}.tar", range(10 * k, 10 * k + 10))
    return [f"{server.url}/f{{0..1}}.tar"]


def local(server: Server, tmp_path: Path) -> np.ndarray:
    index([str(server.folder / f"f{k}.tar") for k in range(2)], tmp_path / "local", TINY, AS_IT_IS)
    with ShardReader(tmp_path / "local", order="sequential") as reader:
        return reader.read(range(20)).images


@pytest.mark.parametrize("trouble", [[], ["503", "drop"], ["drop", "no range"]])
def test_an_index_here_of_tars_there(
    server: Server, urls: list[str], cache: Cache, tmp_path: Path, trouble: list[str]
) -> None:
    server.trouble["f0.tar"] = list(trouble)
    index(urls, tmp_path / "index", TINY, AS_IT_IS)
    server.trouble["f1.tar"] = list(trouble)
    with ShardReader(tmp_path / "index", order="sequential", cache=cache, threads=2) as reader:
        assert np.array_equal(reader.read(range(20)).images, local(server, tmp_path))
    asked = server.asked["f0.tar"]
    with ShardReader(tmp_path / "index", order="sequential", cache=cache) as reader:
        reader.read(range(20))
    assert server.asked["f0.tar"] == asked  # it is in the cache
    assert not list(checker.problems(tmp_path / "index"))
    assert pack(urls, tmp_path / "packed", TINY).counts == {"train": 20, "val": 0}


@pytest.mark.parametrize("addresses", [False, True])
def test_an_index_there(
    server: Server, urls: list[str], cache: Cache, tmp_path: Path, addresses: bool
) -> None:
    for path in server.folder.glob("*-samples.npy"):
        path.unlink()
    (server.folder / "index.json").unlink()
    index(urls if addresses else [str(server.folder)], server.folder, TINY, AS_IT_IS)
    with ShardReader(server.url, order="sequential", cache=cache) as reader:
        keys = reader.read(range(len(reader))).keys
    assert {f"k{n}" for n in range(20)} <= set(keys)


def test_an_index_there_names_no_file_of_this_machine(
    server: Server, urls: list[str], cache: Cache, tmp_path: Path
) -> None:
    own = write_numbers(tmp_path / "own" / "x.tar", range(3))
    index([str(own)], tmp_path / "index", TINY, AS_IT_IS)
    for path in (tmp_path / "index").iterdir():
        (server.folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="paths of the machine that made it"):
        ShardReader(server.url, cache=cache)


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("place", ["../../own/x.tar", "x.tar"])
def test_verify_opens_no_file_of_this_machine(
    server: Server, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, scheme: str, place: str
) -> None:
    own = write_numbers(tmp_path / "own" / "x.tar", range(3))
    folder = tmp_path / "index"
    index([str(own)], folder, TINY, AS_IT_IS)
    (folder / FILE).write_text((folder / FILE).read_text().replace("../own/x.tar", place))
    for path in folder.iterdir():
        (server.folder / path.name).write_bytes(path.read_bytes())
    (server.folder / "x.tar").write_bytes(own.read_bytes())
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))  # from where the path leads to it
    url = server.url if scheme == "http" else f"file://{server.folder}"
    code, out, err = command(verify, url, "--jobs", 1)
    assert code == 1 and out.count("\n") == err.count("\n") == 1
    assert out.startswith(f"{url}/index.json: places: paths of the machine that made it")


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_verify_says_the_same_as_of_a_folder(
    server: Server, tmp_path: Path, command: Command, scheme: str
) -> None:
    server.folder = tmp_path / "data"  # as the server calls it
    for k in range(3):
        write_numbers(server.folder / f"f{k}.tar", range(10 * k, 10 * k + 10))
    index([str(server.folder)], server.folder, TINY, AS_IT_IS)
    url = server.url if scheme == "http" else f"file://{server.folder}"
    for number, damage in enumerate((None, bytes(700), None)):
        if damage:
            with (server.folder / "f1.tar").open("r+b") as file:
                file.seek(2048)
                file.write(damage)
        code, out, err = command(verify, server.folder, "--jobs", 1)
        assert code == (number > 0) and (number == 0) == (": sound (30 train, 0 val samples)" in out)
        said = command(verify, url, "--jobs", 1)
        assert said == (code, out.replace(str(server.folder), url), err.replace(str(server.folder), url))
    (server.folder / "f2.tar").unlink()
    code, out, _ = command(verify, url, "--jobs", 1)
    assert code == 1 and f"{url}/f2.tar: " in out
    server.trouble["f0.tar"] = ["500"] * fetch.ATTEMPTS
    assert scheme == "file" or command(verify, url, "--jobs", 1)[0] == 75


def test_tars_whose_names_have_spaces_and_letters_of_all_kinds(
    server: Server, cache: Cache, tmp_path: Path
) -> None:
    names = ["my photos.tar", "größe.tar", "a%20b.tar"]
    for k, name in enumerate(names):
        write_numbers(server.folder / unquote(name), range(10 * k, 10 * k + 10))
    urls = [f"{server.url}/{name}" for name in names]
    index(urls, tmp_path / "index", TINY, AS_IT_IS)
    with ShardReader(tmp_path / "index", order="sequential", cache=cache) as reader:
        assert len(reader.read(range(30)).keys) == 30
    assert not list(checker.problems(tmp_path / "index"))
    assert pack(urls, tmp_path / "packed", TINY).counts == {"train": 30, "val": 0}


def test_a_damaged_copy_is_fetched_anew(
    server: Server, urls: list[str], cache: Cache, tmp_path: Path
) -> None:
    index(urls, tmp_path / "index", TINY, AS_IT_IS)
    said: list[str] = []
    for _ in range(2):
        with ShardReader(tmp_path / "index", order="sequential", cache=cache, report=said.append) as reader:
            assert len(reader.read(range(20)).keys) == 20
        if not said:
            (copy,) = cache.folder.glob("*/f1.tar")
            copy.write_bytes(bytes(copy.stat().st_size))
    assert len(said) == 1 and "f1.tar: its copy in the cache was damaged" in said[0]


def test_tars_that_are_not_there(server: Server, urls: list[str], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"f2\.tar: HTTP 404"):
        index([f"{server.url}/f2.tar"], tmp_path / "index", TINY, AS_IT_IS)
    with pytest.raises(InputError, match="one kind of them"):
        index([*urls, str(server.folder / "f1.tar")], tmp_path / "index", TINY, AS_IT_IS)
    assert not (tmp_path / "index").exists()


def test_a_first_chunk_of_one_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorter than what tells a gzipped tar."""
    data = write_numbers(tmp_path / "x.tgz", range(4), mode="w:gz").read_bytes()
    monkeypatch.setattr(stream, "stream", lambda url, cap: iter([data[:1], data[1:3000], data[3000:]]))
    assert pack(["http://h/x.tgz"], tmp_path / "packed", TINY).counts == {"train": 4, "val": 0}


def test_a_server_that_has_no_end(server: Server, urls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="larger than 1000 bytes"):
        list(fetch.stream(f"{server.url}/f0.tar", 1000))
