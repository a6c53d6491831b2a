"""Shards in S3, against moto's server on loopback: packed into it, read from it, verified there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import boto3
import pytest
import s3fs

from diffbase.files import REPOSITORY
from shards import pack as pack_command
from shards import verify as verify_command
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.remote.cache import Cache
from shards.remote.upload import Target
from tests.support.tiny_set import TINY, Command, contents
from tests.unit.shards.conftest import MakeSource
from tests.unit.shards.remote.conftest import SECRET_KEY

pytestmark = pytest.mark.slow

PREFIXES = ["", "/with spaces/and a  double one", "/кошка 猫/ü", "/per%20cent+plus&and=is"]
FLAGS = [*TINY, "--shard-size", "7", "--val", "0.2"]


@pytest.fixture
def source(make_source: MakeSource, tmp_path: Path) -> Path:
    return make_source(tmp_path / "source", range(40))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """S3's operations by name, as s3fs asks for them."""
    count: Counter[str] = Counter()
    real = s3fs.S3FileSystem._call_s3

    async def counted(self: Any, method: str, *args: Any, **more: Any) -> Any:
        count[method] += 1
        return await real(self, method, *args, **more)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    return count


def objects(url: str) -> dict[str, bytes]:
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    client = boto3.client("s3")
    keys = [entry["Key"] for entry in client.list_objects_v2(Bucket=bucket).get("Contents", [])]
    return {
        key.removeprefix(prefix).removeprefix("/"): client.get_object(Bucket=bucket, Key=key)["Body"].read()
        for key in keys
    }


@pytest.mark.parametrize("prefix", PREFIXES)
def test_packed_there_read_from_there_and_verified(
    s3: str, prefix: str, source: Path, packed: Path, tmp_path: Path, command: Command
) -> None:
    url = f"{s3}{prefix}"
    code, out, err = command(pack_command.main, source, "--out", url, *FLAGS)
    assert (code, err) == (0, "") and f"{url}: 30 train, 10 val samples; packed 40" in out
    assert objects(url) == contents(packed)
    code, out, err = command(pack_command.main, source, "--out", url, *FLAGS)
    assert (code, err) == (0, "") and "complete already" in out
    code, out, err = command(verify_command.main, url, "--jobs", 1)
    assert (code, err) == (0, "") and out.endswith(f"{url}: sound (30 train, 10 val samples)\n")
    with (
        ShardReader(url, seed=1, cache=Cache(tmp_path / "cache")) as there,
        ShardReader(packed, seed=1) as here,
    ):
        ours, theirs = here.read(range(64)), there.read(range(64))
        assert ours.keys == theirs.keys and (ours.images == theirs.images).all()


@pytest.mark.parametrize("noted", [False, True])
@pytest.mark.parametrize("after", [0, 5, 11])
def test_an_upload_that_was_cut_goes_on(
    s3: str,
    after: int,
    noted: bool,
    source: Path,
    packed: Path,
    asked: Counter[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Cut before a file is sent, or after it was, which nobody could note any more."""

    class StoppedError(BaseException):
        pass

    url, left = f"{s3}/a b", after
    send = Target.send

    def cut(self: Target, file: Path, name: str) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            if not noted:
                send(self, file, name)
            raise StoppedError
        return send(self, file, name)

    with monkeypatch.context() as patch:
        patch.setattr(Target, "send", cut)
        with pytest.raises(StoppedError):
            command(pack_command.main, source, "--out", url, *FLAGS)
    assert ("index.json" in objects(url)) == (after == 11 and not noted)  # which is the last
    s3fs.S3FileSystem.clear_instance_cache()
    code, _, err = command(pack_command.main, source, "--out", url, *FLAGS)
    assert (code, err) == (0, "") and objects(url) == contents(packed)
    # The marker, nine files that the index names, the card, the index: each once, but for what was not noted.
    # The card is not among what is noted.
    twice = {(5, False): 1, (11, True): 1}.get((after, noted), 0)
    assert asked["put_object"] == 12 + twice


def test_what_is_damaged_there_is_named(s3: str, packed: Path, tmp_path: Path, command: Command) -> None:
    """The same lines and codes as of a folder."""
    copy = Path(shutil.copytree(packed, tmp_path / "copy"))
    data = bytearray((copy / "train-000001.tar").read_bytes())
    data[1600] ^= 1
    (copy / "train-000001.tar").write_bytes(data)
    (copy / "train-000002.tar").write_bytes(data[:5000])
    (copy / "train-000003.tar").unlink()
    client, bucket = boto3.client("s3"), s3.removeprefix("s3://")
    for name, content in contents(copy).items():
        client.put_object(Bucket=bucket, Key=name, Body=content)
    code, out, err = command(verify_command.main, copy, "--jobs", 1)
    assert code == 1 and out.count("\n") > 5
    wanted = code, out, err.replace(str(copy), s3)
    assert command(verify_command.main, s3, "--jobs", 1) == wanted
    # A process of its own: this one's workers may have been started without the credentials.
    two = [sys.executable, "-m", "shards.verify", s3, "--jobs", "2"]
    done = subprocess.run(two, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == wanted


def test_no_such_bucket_is_told_before_the_work(
    s3: str, source: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.packing.portion.encode", lambda *_, **__: pytest.fail("worked"))
    url = "s3://no-such-bucket-at-all/x"
    code, _, err = command(pack_command.main, source, "--out", url, *FLAGS)
    assert code == 2 and err.count("\n") == 1 and url in err and "bucket does not exist" in err
    for main in (verify_command.main,):
        code, out, err = command(main, url)
        assert code == 2 and not out and err.count("\n") == 1 and f"{url}/index.json" in err
    names = [bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]]
    assert "no-such-bucket-at-all" not in names  # none is made either


@pytest.fixture
def strict(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server, which is in this process, looks at keys, and knows none."""
    monkeypatch.setattr("moto.settings.INITIAL_NO_AUTH_ACTION_COUNT", 0.0)


def pack_it(source: Path, url: str, command: Command) -> tuple[int, str, str]:
    return command(pack_command.main, source, "--out", url, *FLAGS)


def verify_it(source: Path, url: str, command: Command) -> tuple[int, str, str]:
    return command(verify_command.main, url)


def read_it(source: Path, url: str, command: Command) -> tuple[int, str, str]:
    return command(lambda _: ShardReader(url, cache=Cache(source.parent / "cache")))


@pytest.mark.parametrize("key", ["wrong", "missing"])
@pytest.mark.parametrize("work", [pack_it, verify_it, read_it])
def test_a_wrong_or_missing_key_is_bad_input_at_once(
    s3: str,
    strict: None,
    key: str,
    work: Callable[[Path, str, Command], tuple[int, str, str]],
    source: Path,
    asked: Counter[str],
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if key == "missing":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    code, out, err = work(source, f"{s3}/x", command)
    assert code == 2 and not out and err.count("\n") == 1 and f"{s3}/x" in err and SECRET_KEY not in err
    assert re.search(f"no access .({'.*credentials' if key == 'missing' else '.*Access Key|Forbidden'})", err)
    assert sum(asked.values()) <= 2


def test_settings_of_another_pack_there_are_refused(
    s3: str, source: Path, command: Command, tiny: Callable[..., Settings]
) -> None:
    assert pack_it(source, s3, command)[0] == 0
    before = objects(s3)
    code, _, err = command(pack_command.main, source, "--out", s3, *FLAGS, "--size", "5")
    assert code == 2 and f"{s3}: packed with other settings (size is 4 there, 5 asked)" in err
    assert objects(s3) == before
