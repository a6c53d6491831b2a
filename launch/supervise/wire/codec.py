"""The bytes of a connection between two supervisors: who speaks is proved first, then JSON, never a pickle.

    leader -> node   32 random bytes
    node -> leader   32 random bytes, HMAC(secret, "node", both)
    leader -> node   HMAC(secret, "leader", both)
    then, each way   length (4 bytes), HMAC(key of this direction, number of the message, JSON), JSON

HMAC is that of SHA-256 (RFC 2104); each direction has a key of its own, HMAC(secret, direction, both). So
nobody who does not know the secret can say, change, repeat or leave out a message. It can be read: there is
nothing in it that a listener could use.
"""

from __future__ import annotations

import hmac
import json
import secrets
from typing import Any

from diffbase.cli import InputError
from diffbase.formats import json_file

SIZE = 32
"""Bytes of a random number, and of an HMAC."""
HEADER = 4 + SIZE
LARGEST = 1 << 20
"""Bytes of a message's JSON."""


class StrangerError(Exception):
    """The other side does not know the secret, or says what a supervisor does not say."""


class Codec:
    """One side of one connection, without the connection: bytes in, messages out, and the other way."""

    def __init__(self, secret: bytes, leading: bool) -> None:
        self._secret, self._leading = secret, leading
        self._mine = secrets.token_bytes(SIZE)
        self._read = bytearray()
        self._both = b""  # random numbers, the leader's first
        self._keys = b"", b""  # of what is sent, of what is received
        self._sent = self._received = 0
        self.outgoing = bytearray(self._mine if leading else b"")
        """What is to be sent, and to be removed from here when it is."""
        self.ready = False
        """Whether both sides have proved that they know the secret."""

    def send(self, message: bytes) -> None:
        """Add a message, one JSON object, to what is to be sent."""
        assert self.ready and len(message) <= LARGEST
        mac = _mac(self._keys[0], self._sent.to_bytes(8, "big"), message)
        self._sent += 1
        self.outgoing += len(message).to_bytes(4, "big") + mac + message

    def receive(self, data: bytes) -> list[dict[str, Any]]:
        """The messages that are whole with ``data``. StrangerError: close the connection."""
        self._read += data
        found: list[dict[str, Any]] = []
        while (taken := self._take_message(found) if self.ready else self._shake_hands()) > 0:
            del self._read[:taken]
        return found

    def _shake_hands(self) -> int:
        """Bytes of the handshake that were taken; 0: more are needed."""
        if self._leading:
            if len(self._read) < 2 * SIZE:
                return 0
            self._both = self._mine + bytes(self._read[:SIZE])
            self._prove(b"node", bytes(self._read[SIZE : 2 * SIZE]))
            self.outgoing += _mac(self._secret, b"leader", self._both)
            self._begin()
            return 2 * SIZE
        if len(self._read) < SIZE:
            return 0
        if not self._both:
            self._both = bytes(self._read[:SIZE]) + self._mine
            self.outgoing += self._mine + _mac(self._secret, b"node", self._both)
            return SIZE
        self._prove(b"leader", bytes(self._read[:SIZE]))
        self._begin()
        return SIZE

    def _prove(self, who: bytes, proof: bytes) -> None:
        if not hmac.compare_digest(proof, _mac(self._secret, who, self._both)):
            raise StrangerError("the other side does not know this life's secret")

    def _begin(self) -> None:
        keys = _mac(self._secret, b"to node", self._both), _mac(self._secret, b"to leader", self._both)
        self._keys = keys if self._leading else (keys[1], keys[0])
        self.ready = True

    def _take_message(self, found: list[dict[str, Any]]) -> int:
        if len(self._read) < HEADER:
            return 0
        length = int.from_bytes(self._read[:4], "big")
        if length > LARGEST:
            raise StrangerError(f"a message of {length} bytes; {LARGEST} are allowed")
        if len(self._read) < HEADER + length:
            return 0
        message = bytes(self._read[HEADER : HEADER + length])
        mac = _mac(self._keys[1], self._received.to_bytes(8, "big"), message)
        if not hmac.compare_digest(bytes(self._read[4:HEADER]), mac):
            raise StrangerError("a message that the other side did not send")
        self._received += 1
        found.append(_tree(message))
        return HEADER + length


def encoded(kind: str, **more: Any) -> bytes:
    """A message: one JSON object, whose ``kind`` says what it is."""
    return json.dumps({"kind": kind, **more}).encode()


def _tree(message: bytes) -> dict[str, Any]:
    try:
        tree = json_file.parse(message, "message")
    except InputError as error:
        raise StrangerError(str(error)) from None
    if not isinstance(tree, dict):
        raise StrangerError("a message is a JSON object")
    return tree


def _mac(key: bytes, *parts: bytes) -> bytes:
    """Of parts that cannot be taken for others: each but the last has one length in its place."""
    return hmac.digest(key, b"|".join(parts), "sha256")
