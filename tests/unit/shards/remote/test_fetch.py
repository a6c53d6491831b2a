"""Addresses: which are refused, and what messages show of them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.redaction import shown
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
        ("http://h/a b", "with spaces"),
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


@pytest.mark.parametrize(
    ("url", "there"),
    [
        ("http://h:80/a/b", "http://h:80/a/b"),
        (f"http://h/a?sig={SECRET}#x", "http://h/a"),
        (f"https://user:{SECRET}@h:80/a", "https://h:80/a"),
        (f"https://{SECRET}@h/a", "https://h/a"),
        (f"https://u:a/{SECRET}@h/a", "https://h/a"),
        (f"https://u:a@{SECRET}@h/a", "https://h/a"),
        (f"https://u:{SECRET}@[::1]:80/a", "https://[::1]:80/a"),
        (f"x::ftp://u:{SECRET}@h/a?b", "x::ftp://h/a"),
        (f"http://h/a?b::c={SECRET}", "http://h/a"),
        (f"http://user:{SECRET}", "http://user:***"),
        (f"https://u:a//{SECRET}@h/a", "https://u:***//h/a"),
        (f"https://u:a::{SECRET}@h/a", "https://h/a"),
        (f"https://u:{SECRET}@[:1://0/a", "https://[:1://0/a"),
        (f"https://h/https://u:{SECRET}@g/a", "https://h/https://g/a"),
        (f"https:///u:{SECRET}@h/a@b", "https:///h/a@b"),
        ("file:///data@home/a", "file:///data@home/a"),
        ("http://[fe80::a]:80/a", "http://[fe80::a]:80/a"),
        ("s3://bucket/a@v1/b", "s3://bucket/a@v1/b"),
        ("data/x?y", "data/x?y"),
    ],
)
def test_shown(url: str, there: str) -> None:
    assert shown(url) == there


WORD = st.text(st.characters(codec="ascii", exclude_characters="/?#@:[]"), min_size=1, max_size=9)


@given(st.sampled_from(["http", "https", "ftp", "s3", "sftp"]), WORD, WORD, WORD, WORD)
def test_no_password_and_no_query_is_shown(scheme: str, user: str, host: str, path: str, query: str) -> None:
    url = f"{scheme}://{user}:{SECRET}@{host}/{path}?{query}={SECRET}"
    assert shown(url) == f"{scheme}://{host}/{path}"
    try:
        check_url(url)
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
