"""Addresses of packed folders: what is refused, and that no message shows a password or a signature."""

from __future__ import annotations

import re
from pathlib import Path

from diffbase.cli import InputError
from diffbase.redaction import shown
from shards.header import FILE
from shards.remote.fetch import address, check_url, is_url, unreachable
from tests.support.fuzz.target import Target

SECRET = "hunter2hunter2"
SEEDS = [
    b"memory://set/",
    f"http://h:80/data?sig={SECRET}".encode(),
    f"ftp://user:{SECRET}@h/data".encode(),
    f"https://user:{SECRET}@[::1]:80/data".encode(),
    b"file:///data/x",
]
WORDS = [
    b"http:",
    b"://",
    b"::",
    b"//",
    b"dir:",
    b"zip:",
    b"data:",
    b"local:",
    b"/",
    b"@",
    b"?",
    b"#",
    b"[",
    b"]",
    b":99999",
    b"%00",
]
HERE = ("memory", "file", "local", "data", "dir", "zip", "tar")
"""Schemes that ask no server."""


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        url = data.decode("utf-8", "replace")
        if not is_url(url):
            raise InputError("a path")
        try:
            check_url(url)
            place = address(url, FILE)
            if url.partition(":")[0].lower() in HERE and (why := unreachable(place)):
                raise InputError(why)
        except InputError as error:
            secret = re.search(rf"//[^/?#]*{SECRET}[^/?#]*@|[?].*{SECRET}", url)
            assert not secret or url.count(SECRET) > 1 or SECRET not in str(error)
            raise
        return shown(place)

    return Target(SEEDS[1:2] + SEEDS, feed, WORDS)
