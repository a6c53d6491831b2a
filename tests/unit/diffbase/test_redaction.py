"""Credentials in URLs are not shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.redaction import shown, without_credentials

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("https://me:word@h.example/x?X-Amz-Signature=abc#y", "https://h.example/x"),
        ("s3://key:se/cret@bucket/x", "s3://bucket/x"),
        ("https://token@h/x", "https://h/x"),
        ("https://h:8080/x@2/y", "https://h:8080/x@2/y"),
        ("data/x?y", "data/x?y"),
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
    ],
)
def test_urls(url: str, left: str) -> None:
    assert shown(url) == left


WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789!$*-._~", min_size=8)


@given(user=WORD, word=WORD, signature=WORD)
def test_no_part_of_a_password_is_left(user: str, word: str, signature: str) -> None:
    url = f"https://{user}:{word}@host/path?sig={signature}"
    for text in (shown(url), without_credentials(f"at {url} now"), str(InputError(f"data.path: {url}: no"))):
        assert f"{word}@" not in text and f"={signature}" not in text and "host/path" in text


PART = st.text(st.characters(codec="ascii", exclude_characters="/?#@:[]"), min_size=1, max_size=9)


@given(st.sampled_from(["http", "https", "ftp", "s3", "sftp"]), PART, PART, PART, PART)
def test_an_address_is_shown_without_password_and_query(
    scheme: str, user: str, host: str, path: str, query: str
) -> None:
    url = f"{scheme}://{user}:{SECRET}@{host}/{path}?{query}={SECRET}"
    assert shown(url) == f"{scheme}://{host}/{path}"
    if url.split() == [url]:  # a space ends an address in a text
        assert SECRET not in str(InputError(f"{url}: refused"))
