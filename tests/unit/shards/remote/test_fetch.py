"""Addresses: which are refused, and what messages show of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.read import ShardReader
from shards.remote import fetch
from shards.remote.cache import Cache
from shards.remote.fetch import check_url, fetch_small, unreachable

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http:///x", "without a host"),
        ("https://?x", "without a host"),
        ("http://:80/x", "without a host"),
        ("http://h:99999/x", "its host or its port is none"),
        ("http://h:x/x", "its host or its port is none"),
        ("http://[::1/x", "refused|its host or its port is none"),
        ("http://[x]/x", "its host or its port is none"),
        (f"http://user:{SECRET}@h/x", "with user and password"),
        (f"http://user:a/{SECRET}@h/x", "its host or its port is none"),
        ("http://h/a\nb", "cannot be printed"),
        ("http://h/a ", "with a space at an end"),
        ("http://a b/c", "without a host"),
        ("http://h/\x1b[2J", "cannot be printed"),
        ("http://h/" + "x" * 9000, "more than 8192 characters"),
        ("s3://", "names nothing"),
        ("file:///", "names nothing"),
        ("dir://x", "refused"),
        ("zip://x", "refused"),
        ("simplecache://x", "refused"),
        ("simplecache::http://h/x", "refused"),
        ("data://x", "data://x/index.json: "),
        ("github://x/y", "github://x/y/index.json: .*missing"),
    ],
)
def test_bad_addresses_are_mistakes(url: str, told: str, tmp_path: Path) -> None:
    """Which end a command with exit code 2; 75 would have it tried again."""
    with pytest.raises(InputError, match=told) as caught:
        ShardReader(url, cache=Cache(tmp_path / "cache"))
    assert SECRET not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_ipv6_is_no_chain() -> None:
    check_url("http://[::1]:80/data")


PART = st.text(st.characters(codec="ascii", exclude_characters="/?#@:[]"), min_size=1, max_size=9)


@given(st.sampled_from(["http", "https", "ftp", "s3", "sftp"]), PART, PART)
def test_a_refused_address_is_told_without_its_password(scheme: str, user: str, path: str) -> None:
    try:
        check_url(f"{scheme}://{user}:{SECRET}@h/{path}?sig={SECRET}")
    except InputError as error:
        assert SECRET not in str(error)


def test_what_a_backend_says_is_cleaned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    url = f"ftp://user:{SECRET}@127.0.0.1:1/x?sig=0123456789{SECRET}"

    def refuse(*_: object, **__: object) -> None:
        raise OSError(f"cannot connect to {url} as user:{SECRET}, {SECRET}, sig 0123456789{SECRET}")

    monkeypatch.setattr("fsspec.core.url_to_fs", refuse)
    with pytest.raises(TimeoutError) as caught:
        fetch_small(url, 10)
    for text in (str(caught.value), unreachable(url) or ""):
        assert "ftp://127.0.0.1:1/x" in text and SECRET not in text
