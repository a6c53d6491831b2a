"""A folder behind a URL to write into, through fsspec: each file is there whole or not at all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from diffbase.cli import InputError
from diffbase.redaction import shown
from shards.header import LOCAL
from shards.remote.fetch import address, check_url, is_http, retried
from shards.remote.filesystem import NotThereError, filesystem, translated
from shards.remote.http_client import BrokenError

# Schemes of systems with folders, in which a file can be seen while it is written: there it is renamed when
# it is whole. The others keep objects, which appear whole.
FOLDERS = frozenset({*LOCAL, "sftp", "ssh", "ftp", "smb", "hdfs", "webhdfs"})
# What a system tells of a file's content, the surest first.
_MARKS = ("ETag", "etag", "md5Hash", "content_md5", "mtime", "created", "modified")

T = TypeVar("T")


class Target:
    """The folder at ``url``. InputError for a mistake in what was given, TimeoutError as of ``fetch``.

    The constructor looks at no server.
    """

    def __init__(self, url: str) -> None:
        check_url(url)
        if is_http(url):
            raise InputError(f"{shown(url)}: http and https cannot be written to; allowed: s3://, gs://, ...")
        self.url = url
        self._system, path = filesystem(url)
        self._path = path.rstrip("/")
        protocols = self._system.protocol
        self._has_folders = not FOLDERS.isdisjoint([protocols] if isinstance(protocols, str) else protocols)

    def files(self) -> dict[str, str]:
        """The names in the folder, each with the mark of its content; nothing where there is no folder."""

        def attempt() -> list[Mapping[str, Any]]:
            self._system.invalidate_cache()
            found: list[Mapping[str, Any]] = self._system.ls(self._path, detail=True)
            return found

        try:
            found = self._call("", attempt)
        except NotThereError:
            return {}
        if [entry["name"].rstrip("/") for entry in found if entry["type"] == "file"] == [self._path]:
            raise InputError(f"{shown(self.url)}: not a folder")
        names = {entry["name"].rstrip("/").rpartition("/")[2]: _mark(entry) for entry in found}
        return {name: mark for name, mark in names.items() if name}

    def send(self, file: Path, name: str) -> str:
        """Make ``file``'s bytes those of ``name``; the mark of their content."""
        size, place = file.stat().st_size, f"{self._path}/{name}"

        def attempt() -> str:
            if self._has_folders:
                self._system.makedirs(self._path, exist_ok=True)
                part = f"{self._path}/{part_of(name)}"
                self._system.put_file(str(file), part)
                self._system.mv(part, place)
            else:
                self._system.put_file(str(file), place)
            there = self._system.info(place)
            if there["size"] != size:
                raise BrokenError(f"{there['size']} bytes are there, {size} were sent")
            return _mark(there)

        return self._call(name, attempt)

    def remove(self, name: str) -> None:
        """Remove a file; it is well if it is not there."""
        with suppress(NotThereError):
            self._call(name, lambda: self._system.rm_file(f"{self._path}/{name}"))

    def _call(self, name: str, work: Callable[[], T]) -> T:
        place = address(self.url, name) if name else self.url

        def attempt() -> T:
            with translated(place):
                return work()

        return retried(place, attempt)


def _mark(entry: Mapping[str, Any]) -> str:
    """By what a file's content is known again: its size, and what the system tells."""
    told = next((entry[name] for name in _MARKS if entry.get(name)), "")
    # A listing may tell seconds where a look at one file tells a date.
    return f"{entry.get('size')} {told.timestamp() if isinstance(told, datetime) else told}"


def part_of(name: str) -> str:
    """The name under which a file is written where it could be seen meanwhile."""
    return f".{name}.part"
