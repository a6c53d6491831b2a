"""Addresses of shards."""

from __future__ import annotations

from pathlib import Path

from shards.remote import fetch
from tests.support.fuzz.target import Target

SEEDS = [
    b"https://example.org/data?signature=x",
    b"http:///x",
    b"dir://x",
    b"http://u:p@h:99999/x",
    b"file:///tmp/x",
    b"memory://x/y",
    b"s3://bucket/x",
    b"http://[::1/x",
]
WORDS = [b"://", b"::", b"pipe:", b"@", b"%zz", b"[", b"#", b"?", b"http://", b"file:", b"simplecache::"]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        url = data.decode(errors="surrogateescape")
        if not fetch.is_url(url):
            return None
        fetch.check_url(url)
        place = fetch.address(url, "index.json")
        if url.startswith(("file:", "local:", "memory:")):  # nobody else is asked
            fetch.unreachable(place)
        return place

    return Target(SEEDS, feed, WORDS)
