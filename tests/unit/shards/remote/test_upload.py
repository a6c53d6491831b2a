"""Pack into a URL: the same bytes as into a folder, whole or not there, gone on with after any stop."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from diffbase.cli import InputError
from diffcore import api
from shards import pack as pack_command
from shards.header import FILE
from shards.packing.outside import BEGUN, pack_to
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.remote import fetch
from shards.remote.cache import Cache
from shards.remote.upload import Target
from tests.support.tiny_set import TINY, Command, contents
from tests.unit.shards.conftest import MakeSource


class StoppedError(BaseException):
    """As a kill: nothing may catch it."""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, where a pack waits to be sent."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    return tmp_path / "home" / "diffcore" / "outgoing"


@pytest.fixture
def source(make_source: MakeSource, tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", range(40))


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each file was sent."""
    count: Counter[str] = Counter()
    send = Target.send

    def counted(self: Target, file: Path, name: str) -> str:
        count[name] += 1
        return send(self, file, name)

    monkeypatch.setattr(Target, "send", counted)
    return count


def there(url: str) -> dict[str, bytes]:
    system, path = fsspec.core.url_to_fs(url)
    return {name.rpartition("/")[2]: system.cat_file(name) for name in system.ls(path, detail=False)}


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_what_arrives_is_what_a_folder_gets(
    scheme: str, source: Path, packed: Path, tmp_path: Path, tiny: Callable[..., Settings], home: Path
) -> None:
    url = f"{scheme}://{tmp_path}/out with spaces/ü 猫"
    lines: list[str] = []
    summary = pack_to(source, url, tiny(), tell=lines.append)
    assert summary.written == 40 and not summary.complete_before
    assert there(url) == contents(packed)
    assert [line.partition(" MB")[0].rpartition(" of ")[0] for line in lines] == [f"{url}: sending 9 files"]
    assert list(home.iterdir()) == []  # nothing is left behind

    again = pack_to(source, url, tiny())
    assert again.complete_before and again.written == 0 and again.counts == summary.counts
    with (
        ShardReader(url, cache=Cache(tmp_path / "cache"), seed=3) as reader,
        ShardReader(packed, seed=3) as own,
    ):
        assert (reader.read(range(64)).images == own.read(range(64)).images).all()


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("moment", range(0, 22, 3))
def test_a_stop_at_any_moment_leaves_no_index_and_sends_nothing_twice(
    scheme: str,
    moment: int,
    source: Path,
    packed: Path,
    tmp_path: Path,
    tiny: Callable[..., Settings],
    sent: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = f"{scheme}://{tmp_path}/out"
    system = fsspec.filesystem(scheme)
    left = moment

    def step(real: Callable[..., object]) -> Callable[..., object]:
        def call(self: object, *args: object, **more: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                raise StoppedError
            return real(self, *args, **more)

        return call

    with monkeypatch.context() as patch:
        for name in ("put_file", "info", "mv"):
            patch.setattr(type(system), name, step(getattr(type(system), name)))
        with pytest.raises(StoppedError):
            pack_to(source, url, tiny())
    try:
        before = there(url)
    except FileNotFoundError:
        before = {}
    assert FILE not in before
    whole = contents(packed)
    assert all(whole[name] == data for name, data in before.items() if not name.startswith("."))

    pack_to(source, url, tiny())
    assert there(url) == whole
    shards = [name for name in whole if name.endswith(".tar")]
    assert sum(sent[name] for name in shards) <= len(shards) + 1  # the one that was cut


def test_what_changed_behind_the_url_is_sent_again(
    source: Path, packed: Path, tmp_path: Path, tiny: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"memory://{tmp_path}/out"
    send = Target.send

    def until_the_index(self: Target, file: Path, name: str) -> str:
        if name == FILE:
            raise StoppedError
        return send(self, file, name)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "send", until_the_index)
        with pytest.raises(StoppedError):
            pack_to(source, url, tiny())
    system, path = fsspec.core.url_to_fs(url)
    shard = next(name for name in system.ls(path, detail=False) if name.endswith("train-000000.tar"))
    system.pipe_file(shard, bytes(len(system.cat_file(shard))))
    pack_to(source, url, tiny())
    assert there(url) == contents(packed)


def test_another_pack_or_anything_else_there_is_refused_before_the_work(
    source: Path, tmp_path: Path, tiny: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/out"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    monkeypatch.setattr("shards.packing.portion.encode", lambda *_, **__: pytest.fail("worked"))
    with pytest.raises(InputError, match=r"not empty and not begun by shards.pack \(found mine.txt\)"):
        pack_to(source, url, tiny())
    (tmp_path / "out" / "mine.txt").unlink()
    (tmp_path / "out" / BEGUN).write_text("[]")
    with pytest.raises(InputError, match=r"not of shards\.pack"):
        pack_to(source, url, tiny())
    (tmp_path / "out" / BEGUN).write_text(json.dumps({"val": 0.5}))
    with pytest.raises(InputError, match="packed with other settings"):
        pack_to(source, url, tiny())
    assert [path.name for path in (tmp_path / "out").iterdir()] == [BEGUN]
    with pytest.raises(InputError, match=f"{tmp_path}/source/cs1.png: not a folder"):
        pack_to(source, f"file://{source}/cs1.png", tiny())


def test_a_finished_pack_of_other_settings_or_with_a_file_missing_is_refused(
    source: Path, tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    url = f"file://{tmp_path}/out"
    pack_to(source, url, tiny())
    whole = contents(tmp_path / "out")
    with pytest.raises(InputError, match=r"size is 4 there, 5 asked\); choose another --out"):
        pack_to(source, url, tiny(size=5))
    image = (source / "cs1.png").read_bytes()
    (source / "cs1.png").write_bytes(b"other")
    with pytest.raises(InputError, match="source content differs"):
        pack_to(source, url, tiny())
    assert contents(tmp_path / "out") == whole
    (tmp_path / "out" / "train-000001.tar").unlink()
    (source / "cs1.png").write_bytes(image)
    with pytest.raises(InputError, match=r"out/train-000001\.tar: missing or damaged"):
        pack_to(source, url, tiny())


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9/x", "http and https cannot be written to"),
        ("https://127.0.0.1:9/x", "http and https cannot be written to"),
        ("nothing://x/y", "unknown scheme 'nothing'"),
        ("zip://x/y", "refused"),
        ("oci://bucket/x", "nstall"),
        ("data://x/y", "does not allow|data"),
    ],
)
def test_what_cannot_be_written_to_is_one_line_before_the_source_is_read(
    url: str, says: str, tmp_path: Path, command: Command, home: Path
) -> None:
    code, out, err = command(pack_command.main, tmp_path / "absent", "--out", url, *TINY)
    assert code == 2 and not out and err.count("\n") == 1 and url in err
    assert re.search(says, err)
    assert not Path(url.replace("//", "/")).exists() and (not home.exists() or not list(home.iterdir()))


def test_a_mistake_in_the_source_names_no_folder_of_the_cache(
    source: Path, tmp_path: Path, command: Command, home: Path
) -> None:
    (source / "cs3.csv").write_text("no table")
    code, _, err = command(pack_command.main, source, "--out", f"file://{tmp_path}/out", *TINY)
    assert code == 2 and "cs3.csv" in err and "outgoing" not in err and err.count("\n") == 1
    assert not list((tmp_path / "out").glob("*")) and not list(home.iterdir())


def test_bad_images_are_named_in_the_cache(
    source: Path, tmp_path: Path, command: Command, home: Path
) -> None:
    (source / "cs3.png").write_bytes(b"no image")
    code, _, err = command(pack_command.main, source, "--out", f"file://{tmp_path}/out", *TINY)
    (bad,) = home.rglob("bad.jsonl")
    assert code == 2 and "cs3.png" in err and str(bad) in err and err.count("\n") == 1
    assert not (tmp_path / "out" / "index.json").exists()


@pytest.mark.parametrize("scheme", ["file", "memory"])
def test_settings_that_were_wrong_hold_nobody_up(
    scheme: str, source: Path, tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    url = f"{scheme}://{tmp_path}/out"
    for _ in range(2):
        with pytest.raises(InputError, match=r"bad images, in .*bad\.jsonl"):
            pack_to(source, url, tiny(crop=500))
    assert list(there(url)) == [BEGUN]
    pack_to(source, url, tiny())
    pack(source, tmp_path / "here", tiny())
    assert there(url) == contents(tmp_path / "here")


def test_settings_hold_once_a_shard_is_packed(
    source: Path, tmp_path: Path, tiny: Callable[..., Settings], home: Path
) -> None:
    url = f"file://{tmp_path}/out"
    image = (source / "cs1.png").read_bytes()
    (source / "cs1.png").write_bytes(b"bad")
    with pytest.raises(InputError, match="1 bad image"):
        pack_to(source, url, tiny())
    assert list(home.rglob("*.tar"))
    with pytest.raises(InputError, match=r"size is 4 there, 5 asked\); choose another --out"):
        pack_to(source, url, tiny(size=5))
    (source / "cs1.png").write_bytes(image)
    assert pack_to(source, url, tiny()).counts == {"train": 30, "val": 10}


def test_two_packs_into_one_address_are_told(
    source: Path, tmp_path: Path, tiny: Callable[..., Settings]
) -> None:
    url = f"memory://{tmp_path}/out"

    def second(*_: object) -> None:
        with pytest.raises(InputError, match=r"another shards\.pack is packing for it"):
            pack_to(source, url, tiny())

    pack_to(source, url, tiny(), found=second)


def test_an_address_that_a_path_has_spoilt_is_no_folder(
    source: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = command(pack_command.main, source, "--out", Path("s3://bucket/x"), *TINY)
    assert code == 2 and "is an address, or was one" in err
    with pytest.raises(InputError, match="is an address, or was one"):
        api.pack(source, Path("s3://bucket/x"))
    assert not (tmp_path / "s3:").exists()


def test_the_python_api_takes_an_address(source: Path, tmp_path: Path, tiny: Callable[..., Settings]) -> None:
    url = f"memory://{tmp_path}/api"
    chosen = tiny()
    api.pack(source, url, size=chosen.size, crop=chosen.crop, shard_size=chosen.shard_size, val=chosen.val)
    pack(source, tmp_path / "here", chosen)
    assert there(url) == contents(tmp_path / "here")
