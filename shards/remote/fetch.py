"""Fetching files behind a URL: http(s), and any scheme that fsspec knows.

Dropped connections, answers of 5xx, 408 or 429 and wrong bytes are tried again, with a growing pause; where
the server can, a broken download goes on where it was. Then an error names URL and attempts: TimeoutError, or
InputError where wrong bytes keep coming.

Nothing here runs a command: ``pipe:`` and other schemes that would are refused. An address may hold a
password or a signature: messages have what ``redaction.shown`` leaves of it.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

from diffbase.cli import InputError
from diffbase.redaction import ADDRESS, IPV6, shown
from diffbase.system_error import GaveUpError
from shards.remote.filesystem import NotThereError, check_descriptors, filesystem, told, translated
from shards.remote.http_client import OPENER, BrokenError

ATTEMPTS = 6
PAUSE = 0.5  # seconds after the first failure; twice as long after each further one
TIMEOUT = 30.0  # seconds without a byte
CHUNK = 1 << 20

URL_CAP = 8192  # characters of an address
# Schemes that start commands, run code elsewhere, are recipes that point at other addresses, or are a way to
# read another file system: for those no address says which.
REFUSED = (
    *("pipe", "exec", "shell", "cmd", "dask", "reference", "generic", "jupyter", "jlab", "pyscript", "git"),
    *("dir", "async_wrapper", "asyncwrapper", "blockcache", "cached", "filecache", "simplecache"),
    *("zip", "tar", "libarchive"),
)

SAFE = "/%:@!$&'()*+,;=~"
"""What stands as it is in the path of an http address."""

T = TypeVar("T")


class FetchTimeoutError(GaveUpError, TimeoutError):
    """A server that did not answer as it should in spite of some attempts."""


class _WrongBytesError(BrokenError):
    """The server answers, but not with the file that the index describes."""


def is_url(place: str | Path) -> bool:
    """Whether ``place`` is an address rather than a local path."""
    return isinstance(place, str) and ADDRESS.match(place) is not None


def is_http(url: str) -> bool:
    """Whether the address is of http or https, which need no fsspec."""
    return url.lower().startswith(("http:", "https:"))


def check_url(url: str) -> None:
    """InputError for an address that could run something, that names no host, or whose scheme is unknown."""
    scheme, _, rest = url.partition(":")
    scheme, place = scheme.lower(), shown(url)
    if scheme in REFUSED or "::" in IPV6.sub("", url):  # which is an IPv6 host
        raise InputError(f"{place}: refused; allowed: http, https and fsspec's schemes, not chained by ::")
    if len(url) > URL_CAP:
        raise InputError(f"{place:.200}...: an address of more than {URL_CAP} characters")
    if not url.isprintable() or url != url.strip():
        raise InputError(f"{place}: an address with a space at an end, or characters that cannot be printed")
    if scheme not in ("http", "https"):
        from fsspec.registry import available_protocols

        if scheme not in available_protocols():
            raise InputError(f"{place}: unknown scheme {scheme!r}")
        if not rest.strip("/"):
            raise InputError(f"{place}: an address that names nothing")
        return
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        # Its text may repeat a part of a password.
        raise InputError(f"{place}: not an address: its host or its port is none") from error
    if not host or " " in parts.netloc:
        raise InputError(f"{place}: an address without a host")
    if "@" in parts.netloc:
        raise InputError(f"{place}: an address with user and password, which http and https do not send")


def address(url: str, name: str) -> str:
    """The URL of a file of the folder at ``url``; a query (a signature, say) stays behind it.

    Of http and https, characters that a request cannot hold are percent-encoded; what is already stays.
    """
    if not is_http(url):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(_encoded(url))
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))


def _encoded(url: str) -> str:
    """An address of http as a request can hold it."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=quote(parts.path, SAFE), query=quote(parts.query, SAFE + "?")))


def unreachable(url: str) -> str | None:
    """Why nothing can be read at ``url``, None if something can: one attempt, which reads no byte."""
    try:
        with _open(url, 0):
            return None
    except InputError as error:
        return str(error)
    except BrokenError as error:
        return f"{shown(url)}: {error}"


def fetch_small(url: str, cap: int) -> bytes:
    """The whole of a file of at most ``cap`` bytes. InputError and TimeoutError as ``Cache.open``."""

    def attempt() -> bytes:
        data = b""
        with _open(url, 0) as (_, chunks):
            for chunk in chunks:
                data += chunk
                if len(data) > cap:
                    raise InputError(f"{shown(url)}: larger than {cap} bytes")
        return data

    return retried(url, attempt)


def stream(url: str, most: int) -> Iterator[bytes]:
    """The bytes at ``url``, of which there may be at most ``most``, as they come. Errors as ``fetch_small``.

    A connection that is dropped is made again, and goes on where it was.
    """
    done = 0
    for number in range(1, ATTEMPTS + 1):
        try:
            with _open(url, done) as (at, chunks):
                for chunk in chunks:
                    new = chunk[max(0, done - at) :]  # a server that cannot go on begins again
                    at += len(chunk)
                    if at > most:
                        raise InputError(f"{shown(url)}: larger than {most} bytes")
                    if new:
                        done = at
                        yield new
            return
        except BrokenError as error:
            _pause(url, number, error)


def download(url: str, descriptor: int, size: int, sha256: str) -> None:
    """Fill the file with the ``size`` bytes at ``url``."""
    done = 0

    def attempt() -> None:
        nonlocal done
        if done < size:
            with _open(url, done) as (done, chunks):
                for chunk in chunks:
                    if done + len(chunk) > size:
                        done = 0
                        raise _WrongBytesError(f"more than the {size} bytes of the index")
                    done = _write(descriptor, chunk, done)
            if done < size:
                raise _WrongBytesError(f"{done} bytes came, the index says {size}")
        with os.fdopen(os.dup(descriptor), "rb") as file:
            file.seek(0)
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            done = 0
            raise _WrongBytesError("its SHA-256 differs from the index's")

    retried(url, attempt)


def fetch_range(url: str, start: int, end: int) -> bytes | None:
    """The bytes ``start`` to ``end`` of what is at ``url``; None where its server gives no ranges.

    One attempt: BrokenError, InputError or OSError where it fails.
    """
    if not is_http(url):
        system, path = filesystem(url)
        with translated(url):
            data = bytes(system.cat_file(path, start, end))
    else:
        data = b""
        with _open_http(url, start, end) as (at, chunks):
            if at != start:
                return None
            for chunk in chunks:
                data += chunk
                if len(data) >= end - start:  # all of it came, or more: a server that begins at 0 and goes on
                    break
    if len(data) < end - start:
        raise BrokenError(f"{len(data)} bytes came of {end - start}")
    return data[: end - start]


def download_part(url: str, descriptor: int, *, start: int, size: int, sha256: str) -> None:
    """Fill the file with the ``size`` bytes from ``start`` on of what is at ``url``."""

    def attempt() -> None:
        data = fetch_range(url, start, start + size)
        if data is None:
            raise _WrongBytesError("the server gives no ranges any more")
        if hashlib.sha256(data).hexdigest() != sha256:
            raise _WrongBytesError(f"bytes {start} to {start + size}: their SHA-256 differs from the index's")
        _write(descriptor, data, 0)

    retried(url, attempt)


def copy(url: str, descriptor: int, cap: int) -> int:
    """Write what is at ``url`` into an empty file, whatever it is; its size, or some number above ``cap``."""

    def attempt() -> int:
        done = 0
        with _open(url, 0) as (_, chunks):
            for chunk in chunks:
                done = _write(descriptor, chunk, done)
                if done > cap:
                    break
        os.ftruncate(descriptor, done)  # an attempt before this one may have come further
        return done

    return retried(url, attempt)


def _write(descriptor: int, data: bytes, at: int) -> int:
    """Where the data end that are written at ``at``."""
    rest = memoryview(data)
    while rest:  # a write may take less than it was given
        written = os.pwrite(descriptor, rest, at)
        rest, at = rest[written:], at + written
    return at


def retried(url: str, attempt: Callable[[], T]) -> T:
    """What ``attempt`` gives, tried again after a BrokenError; see the module's text."""
    for number in range(1, ATTEMPTS + 1):
        try:
            return attempt()
        except BrokenError as error:
            _pause(url, number, error)
    raise AssertionError


def _pause(url: str, number: int, error: BrokenError) -> None:
    """Wait after the failure of attempt ``number``; after the last one, raise what it comes to."""
    message = f"{error} (gave up after {ATTEMPTS} attempts)"
    if number == ATTEMPTS and isinstance(error, _WrongBytesError):
        raise InputError(f"{shown(url)}: {message}") from error
    if number == ATTEMPTS:
        # Not a mistake in what was given: the same command may go on when the server is back.
        raise FetchTimeoutError(errno.ETIMEDOUT, message, shown(url)) from error
    time.sleep(PAUSE * 2 ** (number - 1))


@contextmanager
def _open(url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    """The bytes at ``url`` from ``start`` on, or from where the server begins instead, and that place."""
    with (_open_http if is_http(url) else _open_fsspec)(url, start) as opened:
        yield opened


@contextmanager
def _open_http(url: str, start: int, end: int | None = None) -> Iterator[tuple[int, Iterator[bytes]]]:
    headers = {"Accept-Encoding": "identity"}
    if start or end is not None:
        headers["Range"] = f"bytes={start}-{'' if end is None else end - 1}"
    try:
        response = OPENER.open(urllib.request.Request(_encoded(url), headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        message = f"HTTP {error.code} {error.reason}"
        if error.code >= 500 or error.code in (408, 429):
            raise BrokenError(message) from error
        kind = NotThereError if error.code in (404, 410) else InputError
        raise kind(f"{shown(url)}: {message}") from error
    except http.client.InvalidURL as error:
        raise InputError(f"{shown(url)}: not an address") from error
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        check_descriptors(getattr(error, "reason", error))
        text = told(getattr(error, "reason", error), url)
        raise BrokenError(text or type(error).__name__) from error
    except ValueError as error:
        raise InputError(f"{shown(url)}: {told(error, url)}") from error

    def chunks() -> Iterator[bytes]:
        try:
            while chunk := response.read1(CHUNK):
                yield chunk
            if response.length:  # a short body ends like a whole one; only the length tells
                raise BrokenError("the connection was dropped")
        except (OSError, ValueError, http.client.HTTPException) as error:  # ValueError: of a chunk's size
            raise BrokenError(f"the connection was dropped ({type(error).__name__})") from error

    with closing(response):
        resumed = response.status == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {start}-"
        )
        yield start if resumed else 0, chunks()


@contextmanager
def _open_fsspec(url: str, start: int) -> Iterator[tuple[int, Iterator[bytes]]]:
    system, path = filesystem(url)
    with translated(url):
        file = system.open(path, "rb")

    def chunks() -> Iterator[bytes]:
        with translated(url):
            file.seek(start)
        while True:
            with translated(url):
                chunk = file.read(CHUNK)
            if not chunk:
                return
            yield chunk

    with closing(file):
        yield start, chunks()
