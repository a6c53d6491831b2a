"""An HTTP client that no server holds up: answers that trickle, never end or lead elsewhere are an error."""

from __future__ import annotations

import http.client
import io
import time
import urllib.request
from typing import Any
from urllib.parse import urljoin

SLOWEST = 1024  # bytes a second, after so many seconds
SLOW_SECONDS = 30.0
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

    def read1(self, n: int = -1) -> bytes:
        """As the base's."""
        data = super().read1(n)
        self._watched.unused = 0
        return data


class _Watching(urllib.request.AbstractHTTPHandler):
    def do_open(self, http_class: Any, req: Any, **kwargs: Any) -> Any:
        def connection(*args: Any, **options: Any) -> http.client.HTTPConnection:
            made: http.client.HTTPConnection = http_class(*args, **options)
            made.response_class = _Response
            return made

        return super().do_open(connection, req, **kwargs)


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
