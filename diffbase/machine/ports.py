"""TCP ports of this machine."""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Iterator

PORTS = range(20480, 32768)
"""Below those that the kernel hands out by itself."""
TRIES = 256
RENDEZVOUS = ".rendezvous-"
"""Of a file in the run folder: the secret by which the ranks that meet at a port know each other."""


def any_free(address: str = "127.0.0.1") -> int:
    """A port that nobody listens on now, of those that the kernel hands out."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def is_free(port: int, address: str = "") -> bool:
    """Whether nobody listens on ``port`` at ``address`` (default: any of the machine's)."""
    with socket.socket() as probe:
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True


def of_job(*names: str | int) -> Iterator[int]:
    """Ports that follow from a job's number, its life and the like: neighbours on a node get others."""
    for i in range(TRIES):
        digest = hashlib.sha256("|".join(map(str, (*names, i))).encode()).digest()
        yield PORTS[int.from_bytes(digest[:8], "big") % len(PORTS)]
