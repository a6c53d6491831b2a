"""Credentials in URLs are not shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.redaction import shown, without_credentials


@pytest.mark.parametrize(
    ("url", "left"),
    [
        ("https://me:word@h.example/x?X-Amz-Signature=abc#y", "https://h.example/x"),
        ("s3://key:se/cret@bucket/x", "s3://bucket/x"),
        ("https://token@h/x", "https://h/x"),
        ("https://h:8080/x@2/y", "https://h:8080/x@2/y"),
        ("data/x?y", "data/x?y"),
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
