"""The rows of a folder behind an address: blocks of its sample tables, in the cache as files of their own.

A table of a hundred million samples has five gigabytes, of which a node that reads its part of the shards
needs its part. A block (some 50 KB) has its SHA-256 in a list beside the table, which is held against what
comes, and against what is found in the cache.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Protocol

from numpy.lib.format import MAGIC_PREFIX

from diffbase.cli import InputError
from shards.header import SplitEntry, Table
from shards.remote.fetch import address, download_part, fetch_range, retried
from shards.tables.blocks import Part

WHOLE = 1 << 20  # bytes of a table that is fetched whole: it takes no longer
HEAD = 4096  # bytes: a table's npy header has some hundred, whatever its labels
REQUESTS = 32  # at a time


class Keeping(Protocol):
    """What ``shards.remote.cache.Cache`` has for this."""

    def open(
        self,
        url: str,
        path: Path,
        size: int,
        sha256: str,
        make_way: Callable[[], int] = ...,
        tell: Callable[[], None] = ...,
        fill: Callable[[int], None] | None = ...,
    ) -> int:
        """See Cache."""
        ...

    def drop_damaged(self, path: Path, sha256: str, tell: Callable[[], None] = ...) -> bool:
        """See Cache."""
        ...


class FarRows:
    """See ``shards.tables.blocks.Far``; ``folder`` of the cache is for the blocks alone.

    Asks for the heads of large tables as it is made. Errors are those of ``Cache.open``.
    """

    def __init__(
        self,
        cache: Keeping,
        url: str,
        folder: Path,
        splits: Mapping[str, SplitEntry],
        tell: Callable[[str], Callable[[], None]],
    ) -> None:
        self._cache, self._url, self._folder, self._tell = cache, url, folder, tell
        self._heads: dict[str, bytes] = {}
        for entry in splits.values():
            if entry.listed and entry.samples.bytes > WHOLE:
                place = address(url, entry.samples.name)
                # But the first byte, which is every npy file's: a server that gives no ranges begins there.
                ask = partial(fetch_range, place, 1, min(HEAD, entry.samples.bytes))
                if (rest := retried(place, ask)) is not None:
                    self._heads[entry.samples.name] = MAGIC_PREFIX[:1] + rest

    def head(self, table: Table) -> bytes | None:
        """See Far: None too where the server gives no ranges."""
        return self._heads.get(table.name)

    def open(self, table: Table, part: Part) -> int:
        """See Far."""
        place = address(self._url, table.name)
        fill = partial(download_part, place, start=part.start, size=part.size, sha256=part.sha256)
        given = place, self._path(table, part), part.size, part.sha256
        return self._cache.open(*given, tell=self._tell(table.name), fill=fill)

    def fetch(self, table: Table, parts: Sequence[Part]) -> None:
        """See Far."""
        missing = [part for part in parts if not self._path(table, part).exists()]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(REQUESTS, len(missing)), "shards-rows") as threads:
                for _ in threads.map(partial(self._try, table), missing):
                    pass

    def _try(self, table: Table, part: Part) -> None:
        with suppress(InputError, OSError):
            os.close(self.open(table, part))

    def drop_damaged(self, table: Table, part: Part) -> bool:
        """See Far."""
        return self._cache.drop_damaged(self._path(table, part), part.sha256, self._tell(table.name))

    def _path(self, table: Table, part: Part) -> Path:
        return self._folder / f"{table.name}.{part.number}"
