"""A connection that never waits: what cannot be read or sent now is, when the selector says so."""

from __future__ import annotations

import selectors
import socket
import time
from typing import Any

from launch.supervise.wire.codec import Codec, StrangerError

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
HANDSHAKE = 10.0
"""Seconds within which the other side has proved who it is."""
PENDING = 4 << 20
"""Bytes that may wait to be sent to one who does not read."""
BLOCK = 1 << 16
BLOCKS = 8
"""Read at once from one connection, so that one who says much does not keep the others waiting."""
# Seconds after which the kernel gives up a machine that does not answer any more: 10 + 3 x 5.
IDLE, EVERY, TIMES = 10, 5, 3


class Channel:
    """One connection, registered in ``selector`` until it is closed."""

    def __init__(self, sock: socket.socket, codec: Codec, selector: selectors.BaseSelector) -> None:
        self.codec = codec
        self.node: int | None = None
        """The node at the other end, once it has said so."""
        self.since = time.monotonic()
        self._socket, self._selector = sock, selector
        self._mask = READ | WRITE
        selector.register(sock, self._mask, self)

    def serve(self, mask: int) -> list[dict[str, Any]]:
        """Read and send what can be; returns the messages that came.

        OSError or StrangerError: the connection is of no more use.
        """
        found: list[dict[str, Any]] = []
        if mask & READ:
            for _ in range(BLOCKS):
                try:
                    data = self._socket.recv(BLOCK)
                    if not data:
                        raise ConnectionResetError("closed by the other side")
                except BlockingIOError:
                    break
                except OSError:
                    if not found:
                        raise
                    return found  # its last words count; the end is seen again
                found += self.codec.receive(data)
        try:
            self.flush()
        except OSError:
            if not found:
                raise
        return found

    def send(self, message: bytes) -> None:
        """Send a message as soon as possible. OSError as of ``serve``."""
        self.codec.send(message)
        self.flush()

    def flush(self) -> None:
        """Send what can be sent now. OSError as of ``serve``."""
        outgoing = self.codec.outgoing
        while outgoing:
            try:
                sent = self._socket.send(outgoing[: 4 * BLOCK])
            except BlockingIOError:
                break
            del outgoing[:sent]
        if len(outgoing) > PENDING:
            raise BufferError("it does not read")
        mask = READ | (WRITE if outgoing else 0)
        if mask != self._mask:
            self._mask = mask
            self._selector.modify(self._socket, mask, self)

    @property
    def late(self) -> bool:
        """Whether the other side had its time to prove who it is, and did not."""
        return not self.codec.ready and time.monotonic() - self.since > HANDSHAKE

    def finish(self) -> None:
        """Nothing more will be sent."""
        self._socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Drop the connection."""
        self._selector.unregister(self._socket)
        self._socket.close()


BROKEN = (OSError, StrangerError, BufferError)
"""What ends a connection."""


def watched(sock: socket.socket) -> socket.socket:
    """Have the kernel notice within half a minute that the other machine is gone; and never wait."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (
        (socket.TCP_KEEPIDLE, IDLE),
        (socket.TCP_KEEPINTVL, EVERY),
        (socket.TCP_KEEPCNT, TIMES),
        (socket.TCP_USER_TIMEOUT, 1000 * (IDLE + TIMES * EVERY)),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    return sock
