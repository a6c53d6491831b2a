"""Packed shards that are whole, and that are not: here and behind a URL."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launch.doctor import data as module
from launch.doctor.data import data
from launch.doctor.finding import Finding
from shards.foreign.indexer import index
from shards.packing.plan import Settings
from shards.sources.base import AS_IT_IS
from shards.table import Index
from tests.support import small_set
from tests.support.foreign_tars import write_numbers


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set.packed(tmp_path_factory.mktemp("doctor"), 24, 8)


@pytest.fixture
def packed(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "SECONDS", 0.05)
    return Path(shutil.copytree(whole, tmp_path / "shards"))


@pytest.fixture
def url(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("SLURM_TMPDIR", raising=False)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(packed))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def found(place: str) -> dict[str, Finding]:
    lines = list(data(place))
    assert all(line.todo for line in lines if line.status != "ok")
    return {line.name: line for line in lines}


def first_shard(folder: Path) -> Path:
    return folder / Index.load(folder).split("train").shards[0].name


def test_tars_of_others(packed: Path, url: str, tmp_path: Path) -> None:
    for place in (str(write_numbers(packed / "x.tar", range(20))), f"{url}/x.tar"):
        out = tmp_path / f"index{len(place)}"
        index([place], out, Settings(size=4, val=0.3), AS_IT_IS)
        lines = found(str(out))
        assert [line.status for line in lines.values()] == ["ok"] * 3
        assert "images of 4 x 4 in 1 shards" in lines["data"].found
    (packed / "x.tar").unlink()
    assert found(str(out))["shard files"].status == "bad"  # behind the URL as well


def test_a_whole_folder(packed: Path) -> None:
    lines = found(str(packed))
    assert [line.status for line in lines.values()] == ["ok"] * 3
    assert lines["data"].found.startswith(f"{packed}: ")
    assert "images of 8 x 8 in 2 shards" in lines["data"].found
    assert "images/s" in lines["reading"].found


def test_a_missing_shard_is_named(packed: Path) -> None:
    first_shard(packed).unlink()
    lines = found(str(packed))
    assert lines["data"].status == "ok"
    assert lines["shard files"].status == "bad"
    assert lines["shard files"].found == "train-000000.tar: missing"
    assert lines["reading"].status == "bad"
    assert "cannot open the shard" in lines["reading"].found


def test_a_shorter_shard_is_named(packed: Path) -> None:
    path = first_shard(packed)
    path.write_bytes(path.read_bytes()[:1000])
    lines = found(str(packed))
    assert lines["shard files"].found.startswith("train-000000.tar: 1000 bytes, the index says")
    assert lines["reading"].status == "bad"


def test_of_many_missing_shards_some_are_named(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAMED", 1)
    for path in packed.glob("*.tar"):
        path.unlink()
    assert found(str(packed))["shard files"].found == "train-000000.tar: missing and 1 more"


def test_damaged_pixels_are_bad(packed: Path) -> None:
    path = first_shard(packed)
    index = Index.load(packed).split("train")
    content = bytearray(path.read_bytes())
    for row in index.samples:
        content[int(row["image_offset"]) + 20] ^= 1
    path.write_bytes(content)
    lines = found(str(packed))
    assert lines["shard files"].status == "ok"
    assert lines["reading"].status == "bad"
    assert "damaged" in lines["reading"].found


@pytest.mark.parametrize("content", [None, "no JSON", '{"format": "diffcore-shards", "version": 99}'])
def test_a_bad_index_is_bad(packed: Path, content: str | None) -> None:
    (packed / "index.json").unlink()
    if content:
        (packed / "index.json").write_text(content)
    (line,) = data(str(packed))
    assert line.status == "bad"
    assert "index.json" in line.found


def test_a_whole_url(url: str) -> None:
    lines = found(url)
    assert [line.status for line in lines.values()] == ["ok"] * 3
    assert lines["data"].found.startswith(f"{url}: ")
    assert "from the cache" in lines["reading"].found


def test_a_missing_shard_behind_a_url_is_named(url: str, packed: Path) -> None:
    (packed / "val-000000.tar").unlink()
    lines = found(url)
    assert lines["shard files"].found == "val-000000.tar: missing"
    assert lines["reading"].status == "ok"  # one shard of the training is read, and no other


def test_of_many_shards_behind_a_url_some_are_looked_for(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ASKED", 1)
    assert found(url)["shard files"].found == "1 of 2 were looked for, and are there"


@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("http://127.0.0.1:9/x", "refused"),
        ("pipe:cat /etc/passwd", "refused; allowed"),
        ("nothing://x", "unknown scheme"),
    ],
)
def test_a_bad_url_is_bad_at_once(place: str, what: str) -> None:
    (line,) = data(place)
    assert line.status == "bad"
    assert what in line.found


def test_a_url_without_shards(url: str) -> None:
    (line,) = data(f"{url}/elsewhere")
    assert line.status == "bad"
    assert "HTTP 404" in line.found
