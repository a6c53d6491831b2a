"""What a server may answer: without end, in a loop, or what is no HTTP. All of it is one error."""

from __future__ import annotations

import contextlib
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from diffbase.cli import InputError
from shards.remote import fetch, http_client

HEAD = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"
ENDLESS = b"0" * (1 << 16)


@contextlib.contextmanager
def answering(first: bytes, then: bytes = b"", times: int = 0) -> Iterator[str]:
    """The URL of a server that answers everybody with ``first``, then ``times`` times with ``then``."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.recv(1 << 16)
                        connection.sendall(first)
                        for _ in range(times):
                            connection.sendall(then)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/x?sig=secret"
        listening.shutdown(socket.SHUT_RDWR)
        thread.join(10)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "PAUSE", 0.0)
    monkeypatch.setattr(fetch, "TIMEOUT", 5.0)


def told(url: str) -> str:
    with pytest.raises((InputError, fetch.FetchTimeoutError)) as error:
        fetch.fetch_small(url, 1 << 20)
    assert "secret" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_what_comes_with_a_redirect_is_not_read(code: int) -> None:
    head = f"HTTP/1.1 {code} Found\r\nLocation: /y\r\nConnection: close\r\n\r\n".encode()
    with answering(head, ENDLESS, 1000) as url:
        tracemalloc.start()
        told(url)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.parametrize("to", ["ftp://127.0.0.1/secret", "file:///etc/secret", "javascript:secret", "//"])
def test_a_redirect_leads_to_http_alone(to: str) -> None:
    with answering(f"HTTP/1.1 302 Found\r\nLocation: {to}\r\n\r\n".encode()) as url:
        told(url)


@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nabcde\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab",
        HEAD + b"Content-Length: 99\r\n\r\nabc",
        b"\x1b[31m garbage\r\n\r\n",
        b"",
    ],
)
def test_what_is_no_answer_is_one_error(answer: bytes) -> None:
    with answering(answer) as url:
        told(url)


def test_a_length_that_is_none_is_none() -> None:
    with answering(HEAD + b"Content-Length: -1\r\n\r\nabc") as url:
        assert fetch.fetch_small(url, 1 << 20) == b"abc"


PARTS = {
    "status": (b"HTTP/1.1 200 ", b"O"),
    "headers": (HEAD + b"X-Long: ", b"x"),
    "continue": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "length": (HEAD + b"Content-Length: 99999999\r\n\r\n", b"x"),
    "chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "size": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1", b";x"),
    "trailer": (HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X: x\r\n"),
    "end": (HEAD + b"\r\n", b"x"),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_trickle_is_no_answer(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "SLOW_SECONDS", 0.0)
    monkeypatch.setattr(http_client, "SLOWEST", 1 << 40)
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    with answering(*PARTS[part], 9) as url:
        assert "slower than" in told(url)


@pytest.mark.parametrize("part", ["continue", "trailer"])
def test_what_is_around_a_body_ends(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "ATTEMPTS", 2)
    first, then = PARTS[part]
    with answering(first, then * 1000, 1 << 20) as url:
        assert "no content" in told(url)


def test_a_body_in_many_chunks_is_read() -> None:
    body = b"1;" + b"x" * 999 + b"\r\nx\r\n"
    first = HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + body * 9_999
    with answering(first, body + b"0\r\n\r\n", 1) as url:
        assert fetch.fetch_small(url, 1 << 20) == b"x" * 10_000
