"""An HTTP client that no server holds up: answers that trickle, never end or lead elsewhere are an error.

Connections are kept for further requests. (urllib3 keeps them too, but lets nobody look at the bytes of heads
and chunk sizes, by which a server holds its readers up.)
"""

from __future__ import annotations

import http.client
import io
import os
import select
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import Any
from urllib.parse import urljoin

SLOWEST = 1024  # bytes a second, after so many seconds
SLOW_SECONDS = 30.0
KEPT = 32  # connections to one host that wait for another request
UNUSED_CAP = 8 << 20  # bytes around a body: a status, headers, sizes of chunks


class BrokenError(Exception):
    """A failure that may pass."""


class _Watched(io.RawIOBase):
    """A connection's bytes, headers and all: BrokenError once they are too slow, or too many for nothing."""

    def __init__(self, raw: io.RawIOBase) -> None:
        self._raw, self._got, self._seconds = raw, 0, 0.0
        self.unused = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        began = time.monotonic()
        count = self._raw.readinto(buffer)
        self._seconds += time.monotonic() - began  # of the server alone: a reader may take its time
        self._got += count or 0
        self.unused += count or 0
        if self._seconds > SLOW_SECONDS and self._got < SLOWEST * self._seconds:
            raise BrokenError(f"slower than {SLOWEST} bytes a second")
        if self.unused > UNUSED_CAP:
            raise BrokenError(f"an answer with {UNUSED_CAP} bytes that are no content")
        return count

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """An answer whose bytes are watched. Its content is read with ``read1``."""

    def __init__(self, sock: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self._watched = _Watched(self.fp.detach())
        self.fp = io.BufferedReader(self._watched)
        self.over: Callable[[bool], None] | None = None

    def read1(self, n: int = -1) -> bytes:
        """As the base's."""
        data = super().read1(n)
        self._watched.unused = 0
        return data

    def close(self) -> None:
        """As the base's; tells ``over`` whether the connection is good for another request."""
        whole = self.isclosed() or self.length == 0
        super().close()
        over, self.over = self.over, None
        if over is not None:
            over(whole and not self.will_close)


class _Kept:
    """Connections that wait for another request: a request over a new one takes twice the way, or more.

    Of one process: a forked one must not speak over them.
    """

    def __init__(self) -> None:
        self._by_process: dict[int, dict[Hashable, deque[http.client.HTTPConnection]]] = {}

    def _idle(self, key: Hashable) -> deque[http.client.HTTPConnection]:
        # Without a lock, which another thread may hold when a process forks: each call here is atomic.
        return self._by_process.setdefault(os.getpid(), {}).setdefault(key, deque())

    def take(self, key: Hashable) -> http.client.HTTPConnection | None:
        """One that is good, as far as can be seen."""
        idle = self._idle(key)
        with suppress(IndexError):
            while True:
                connection = idle.pop()  # the last one that was used: it is the least likely to be closed
                if connection.sock is not None and not _is_readable(connection.sock):
                    return connection
                connection.close()  # by the server, or it says what nobody asked for
        return None

    def put(self, key: Hashable, connection: http.client.HTTPConnection) -> None:
        """Keep it, or close it where enough are kept."""
        idle = self._idle(key)
        if len(idle) < KEPT:
            idle.append(connection)
        else:
            connection.close()


def _is_readable(sock: Any) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(0))


_KEPT = _Kept()


class _Watching(urllib.request.AbstractHTTPHandler):
    def do_open(self, http_class: Any, req: Any, **kwargs: Any) -> Any:
        """As the base's, which closes the connection after each answer."""
        if req._tunnel_host:  # a proxy for https, which the base knows how to ask
            return super().do_open(partial(_made, http_class), req, **kwargs)
        key = http_class, req.host
        headers = {name.title(): value for name, value in {**req.headers, **req.unredirected_hdrs}.items()}
        while True:
            kept = _KEPT.take(key)
            connection = kept or _made(http_class, req.host, timeout=req.timeout, **kwargs)
            try:
                connection.request(req.get_method(), req.selector, req.data, headers)
                response: Any = connection.getresponse()
            except BaseException as error:
                connection.close()
                if kept is not None and isinstance(error, ConnectionError):
                    continue  # the server had closed it: no answer to this request
                if isinstance(error, OSError):
                    raise urllib.error.URLError(error) from error
                raise
            response.over = partial(_over, key, connection)
            response.url, response.msg = req.get_full_url(), response.reason
            return response


def _made(http_class: Any, *args: Any, **options: Any) -> http.client.HTTPConnection:
    made: http.client.HTTPConnection = http_class(*args, **options)
    made.response_class = _Response
    return made


def _over(key: Hashable, connection: http.client.HTTPConnection, is_good: bool) -> None:
    if is_good:
        _KEPT.put(key, connection)
    else:
        connection.close()


class _Http(_Watching, urllib.request.HTTPHandler):
    pass


class _Https(_Watching, urllib.request.HTTPSHandler):
    pass


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows to http and https alone, and reads nothing that comes with the answer: it may be endless."""

    def http_error_302(self, req: Any, fp: Any, code: int, msg: str, headers: Any) -> Any:
        """As the base's, which reads the body to the end."""
        fp.close()
        target = urljoin(req.full_url, headers.get("location", ""))
        if not target.startswith(("http:", "https:")):
            raise ValueError("the server leads to an address that is none of http or https")
        return super().http_error_302(req, io.BytesIO(), code, msg, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


OPENER = urllib.request.build_opener(_Http, _Https, _Redirects)
"""As ``urllib.request``'s own, proxies of the environment and all."""
