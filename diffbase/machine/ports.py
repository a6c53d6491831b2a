"""TCP ports of this machine."""

from __future__ import annotations

import socket

MEETING = ".rendezvous-"
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
