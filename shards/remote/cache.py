"""Packed folders behind a URL, read through a node-local cache.

1. ``index.json`` is fetched anew each time a reader opens; its hash names the folder in the cache, so data
   that changes behind a URL never mixes. Tables and shards are fetched when first needed and checked by the
   sizes and SHA-256 that the index tells; of version 4's rows the blocks that are (``shards.remote.rows``).
2. A file is written as ``.NAME.part`` and renamed when it is whole. The part file is also the lock (flock):
   of many processes one downloads and the others wait. A killed process lets go of it, and whoever comes
   next starts that file again.
3. A reader holds a shared lock on each file that it has open. To keep the folder below ``limit`` bytes the
   files that were opened longest ago are deleted, never one that somebody holds. The folder's lock keeps an
   account of its bytes: it is looked at where there may be no room, and now and then.

Names come from the index, which holds plain ones only, and so do the addresses of the tars of others, whose
index may lie here or behind a URL; what may be fetched, and how: ``shards.remote.fetch``.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cached_property, partial
from pathlib import Path
from typing import IO

from diffbase.cli import InputError
from diffbase.files import open_lock, write_atomic
from diffbase.locking import lock
from diffbase.machine import home
from diffbase.redaction import shown
from diffbase.system_error import named, patiently
from diffbase.trust import own_folder
from shards.header import FILE, INDEX_CAP, Header, Shard, check_remote, parse_header
from shards.remote.fetch import address, check_url, download, fetch_small
from shards.remote.rows import FarRows
from shards.table import Index

LIMIT = 64 << 30  # bytes
PATIENCE = 60.0  # seconds to wait for other processes to let go of files in a full cache
# O_NONBLOCK: a pipe in a file's place holds nobody up.
READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
WRITE = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
LOOK_EVERY = 256  # reservations: what others did to the folder meanwhile is found
MANY = 64  # files in the cache of which a look takes a while
POLL = 0.02  # seconds between two looks at another process's download


def default_folder() -> Path:
    """The job's scratch folder where Slurm made one, else the user's cache folder.

    InputError where there is neither: a user without a home.
    """
    if scratch := os.environ.get("SLURM_TMPDIR"):
        return Path(scratch) / "diffcore-shards"
    own = home.cache()
    if own is None:
        raise InputError("data.cache: this user has no home folder for it; give one, or set XDG_CACHE_HOME")
    return own / "shards"


class Cache:
    """A folder of at most ``limit`` bytes, shared by all processes of a node; see the module's text."""

    def __init__(self, folder: Path | None = None, limit: int = LIMIT) -> None:
        if limit < 1:
            raise ValueError(f"limit is {limit}; allowed: 1 or more bytes")
        self._given = folder
        self.limit = limit

    @cached_property
    def folder(self) -> Path:
        """Where it lies; see ``default_folder``."""
        return default_folder() if self._given is None else Path(self._given)

    def open(
        self,
        url: str,
        path: Path,
        size: int,
        sha256: str,
        make_way: Callable[[], int] = lambda: 0,
        tell: Callable[[], None] = lambda: None,
        fill: Callable[[int], None] | None = None,
    ) -> int:
        """A descriptor of ``path`` in the cache, fetched from ``url`` if it is not there, held until closed.

        ``fill`` fills its descriptor where it is not the whole of what is at ``url``. ``make_way`` is asked
        to close what the caller can spare when the cache is full; it returns how many. ``tell`` is called
        where somebody had cut the copy, which is dropped then: by one process only.
        Raises InputError where the file is not there or finds no room, TimeoutError where its server does not
        answer in spite of some attempts.
        """
        with lock.needed(self.folder, "data.cache: a folder of a node's own disk"):
            while (descriptor := self._held(path, size, tell)) is None:
                self._fetch(url, path, size, make_way, fill or partial(_whole, url, size, sha256))
        return descriptor

    def put(self, path: Path, data: bytes, tell: Callable[[], None] = lambda: None) -> int:
        """Like ``open``, for bytes that are here already."""
        with lock.needed(self.folder, "data.cache: a folder of a node's own disk"):
            while (descriptor := self._held(path, len(data), tell)) is None:
                with self._locked():  # few bytes: they are counted at the next look at the folder
                    write_atomic(path, data)
        return descriptor

    def drop_damaged(self, path: Path, sha256: str, tell: Callable[[], None] = lambda: None) -> bool:
        """Remove ``path`` if its bytes are not those of ``sha256``; whether it was so, or it is gone already.

        ``tell`` is called by the one process that removes it. OSError of the system after some tries.
        """
        return patiently(lambda: self._drop_damaged(path, sha256, tell), path)

    def _drop_damaged(self, path: Path, sha256: str, tell: Callable[[], None]) -> bool:
        try:
            with named(path), os.fdopen(os.open(path, READ), "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() == sha256:
                    return False
                if _is(path, file.fileno()):  # else another process has fetched it anew meanwhile
                    path.unlink()
                    tell()
        except FileNotFoundError:  # gone, or another process was first
            pass
        return True

    def _held(self, path: Path, size: int, tell: Callable[[], None]) -> int | None:
        try:
            descriptor = os.open(path, READ)
        except FileNotFoundError:
            return None
        try:
            with named(path):
                lock.until_alone(descriptor, shared=True)  # a moment at most: else it is locked to be deleted
                there = os.fstat(descriptor)
                if not stat.S_ISREG(there.st_mode):
                    raise InputError(f"{path}: not a plain file; the cache made only such")
                if there.st_nlink and there.st_size == size:
                    os.utime(descriptor)  # what was opened longest ago goes first
                    return descriptor
                if there.st_nlink and _is(path, descriptor):  # somebody cut it
                    with suppress(FileNotFoundError):  # another process was first
                        path.unlink()
                        tell()
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        return None

    def _fetch(
        self, url: str, path: Path, size: int, make_way: Callable[[], int], fill: Callable[[int], None]
    ) -> None:
        if size > self.limit:
            raise InputError(f"{shown(url)}: {size} bytes are more than the cache's limit of {self.limit}")
        own_folder(path.parent)
        part = path.with_name(f".{path.name}.part")
        descriptor = os.open(part, WRITE, 0o600)  # not O_EXCL: it is the lock of several processes
        with named(part), _closing(descriptor):
            there = os.fstat(descriptor)
            if not stat.S_ISREG(there.st_mode) or there.st_nlink > 1:
                raise InputError(f"{part}: not a plain file under this name alone; remove it")
            # Not a lock that waits: a file that is renamed into place keeps the locks on it, and whoever
            # reads it may hold his for the rest of the run.
            while not lock.alone(descriptor):
                if not _is(part, descriptor):
                    return  # another process finished or gave up: look again
                time.sleep(POLL)
            if not _is(part, descriptor) or path.exists():
                return
            try:
                os.ftruncate(descriptor, 0)
                self._reserve(url, descriptor, size, make_way)
                fill(descriptor)
                part.rename(path)
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def _reserve(self, url: str, descriptor: int, size: int, make_way: Callable[[], int]) -> None:
        """Give the file its size on the disk, once the others leave room for it."""
        until = time.monotonic() + PATIENCE
        while True:
            with self._locked() as account:
                held, left = _read_account(account)
                if not left or held + size > self.limit:
                    held, left = self._evict(self.limit - size), LOOK_EVERY
                if held + size <= self.limit:
                    if size:
                        os.posix_fallocate(descriptor, 0, size)
                    _write_account(account, held + size, left - 1)
                    return
            if not make_way():
                if time.monotonic() > until:
                    raise InputError(
                        f"{shown(url)}: no room in the cache {self.folder}: {held} of its {self.limit} bytes "
                        f"are in use and {size} more are needed; give it more"
                    )
                time.sleep(min(0.2, PATIENCE))

    def _evict(self, target: int) -> int:
        """Delete files that nobody holds, the oldest use first, down to ``target`` bytes; what is left.

        Of many files somewhat more, so that not each further one needs a look at all.
        """
        files = []
        for path in self.folder.glob("*/*"):  # part files as well
            try:
                found = path.lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(found.st_mode):  # what else is there is not ours to remove
                files.append((found.st_mtime_ns, path, found.st_size))
        total = sum(size for _, _, size in files)
        if total > target and len(files) > MANY:
            target -= self.limit // 16
        for _, path, size in sorted(files):
            if total <= target:
                break
            try:
                descriptor = os.open(path, READ)
            except FileNotFoundError:
                continue
            try:
                if lock.alone(descriptor) and _is(path, descriptor):  # else somebody has it open
                    path.unlink()
                    total -= size
            finally:
                os.close(descriptor)
        return total

    @contextmanager
    def _locked(self) -> Iterator[IO[bytes]]:
        """The folder's lock, which is a file that keeps the account of its bytes."""
        path = self.folder / ".lock"
        with open_lock(path) as file:
            with named(path):
                lock.until_alone(file.fileno())
            yield file


def _whole(url: str, size: int, sha256: str, descriptor: int) -> None:
    download(url, descriptor, size, sha256)
    os.fsync(descriptor)  # nobody checks it again


def _read_account(file: IO[bytes]) -> tuple[int, int]:
    """Bytes in the cache, and how many reservations may be made before somebody looks; 0 where it is none.

    Deleted files may still be counted: that is found out where room is short, by looking.
    """
    try:
        held, left = map(int, os.pread(file.fileno(), 64, 0).split())
    except ValueError:
        return 0, 0
    return (held, min(left, LOOK_EVERY)) if held >= 0 and left > 0 else (0, 0)


def _write_account(file: IO[bytes], held: int, left: int) -> None:
    os.ftruncate(file.fileno(), 0)  # a kill between the two leaves no account, and so a look
    os.pwrite(file.fileno(), b"%d %d\n" % (held, left), 0)


@contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)


def _is(path: Path, descriptor: int) -> bool:
    """Whether ``path`` still leads to the open file: another process may have renamed or deleted it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def fetch_header(url: str) -> tuple[bytes, Header]:
    """The index.json behind ``url``, as it is and checked. InputError and TimeoutError as ``Cache.open``."""
    check_url(url)
    place = address(url, FILE)
    data = fetch_small(place, INDEX_CAP)
    try:
        header = parse_header(data, Path(FILE))
        check_remote(header, Path(FILE))
        return data, header
    except InputError as error:
        raise InputError(f"{shown(place)}: {str(error).removeprefix(f'{FILE}: ')}") from error


class RemoteShards:
    """The shards of ``index`` that are not here: they lie beside it, at ``url``, or at their own addresses.

    ``report`` gets a line where a copy in the cache turned out damaged. Raises InputError for an address that
    is refused.
    """

    def __init__(
        self, index: Index, cache: Cache, url: str = "", report: Callable[[str], None] = lambda line: None
    ) -> None:
        self.index, self.cache, self._url, self._report = index, cache, url, report
        self._folder = cache.folder / index.fingerprint
        for shard in index.header.shards:  # others are checked when they are asked for
            if shard.place is not None:
                check_url(shard.place)

    def address(self, shard: Shard) -> str:
        """Where a shard is fetched from."""
        if shard.place is not None:
            check_url(shard.place)
            return shard.place
        return address(self._url, shard.name)

    def drop_damaged(self, shard: Shard) -> bool:
        """Whether the cached copy of a shard was damaged; it is gone then, and fetched when next opened."""
        tell = partial(_tell, self._report, self.address(shard))
        return self.cache.drop_damaged(self._folder / shard.name, shard.sha256, tell)

    def is_there(self, shard: Shard) -> bool:
        """Whether the cache has a copy of a shard: at this moment, sound or not."""
        return (self._folder / shard.name).exists()

    def open(self, shard: Shard, make_way: Callable[[], int]) -> int:
        """A descriptor of one shard; see ``Cache.open``."""
        place, path = self.address(shard), self._folder / shard.name
        tell = partial(_tell, self._report, place)
        return self.cache.open(place, path, shard.bytes, shard.sha256, make_way, tell)


class RemoteFolder(RemoteShards):
    """A packed folder at ``url``: its index, here, and its shards as they are needed.

    ``report`` as RemoteShards'. Raises InputError for an address that is refused or cannot be reached and for
    a bad index.
    """

    def __init__(self, url: str, cache: Cache, report: Callable[[str], None] = lambda line: None) -> None:
        data, header = fetch_header(url)
        folder = cache.folder / hashlib.sha256(data).hexdigest()
        own_folder(cache.folder)
        own_folder(folder)
        tables = [table for entry in header.splits.values() for table in entry.tables]

        def tell(name: str) -> Callable[[], None]:
            return partial(_tell, report, address(url, name))

        rows = FarRows(cache, url, cache.folder / f"{folder.name}-rows", header.splits, tell)
        tables = [table for table in tables if rows.head(table) is None]

        def load() -> Index:
            with ExitStack() as held:
                for table in tables:  # held, so that nobody makes room with them before the load
                    there = address(url, table.name), folder / table.name
                    opened = cache.open(*there, table.bytes, table.sha256, tell=tell(table.name))
                    held.callback(os.close, opened)
                held.callback(os.close, cache.put(folder / FILE, data, tell(FILE)))
                index = Index.shared(folder, rows, url)
                if any(entry.listed for entry in header.splits.values()):  # they are read as needed
                    weakref.finalize(self, held.pop_all().close)
            if index.fingerprint != folder.name:
                raise InputError(f"{folder / FILE}: damaged")
            return index

        try:
            index = load()
        except InputError:  # a copy may be damaged: fetched again, once
            copies = {FILE: folder.name} | {table.name: table.sha256 for table in tables}
            dropped = [cache.drop_damaged(folder / name, copies[name], tell(name)) for name in copies]
            if not any(dropped):
                raise
            index = load()
        super().__init__(index, cache, url, report)


def _tell(report: Callable[[str], None], place: str) -> None:
    report(f"{shown(place)}: its copy in the cache was damaged and is fetched anew")
