"""How many files, connections among them, this process may have open."""

from __future__ import annotations

import resource
import sys


def allow(wanted: int) -> int:
    """Raise this process's own limit to ``wanted``, or as far as the system lets it; returns what holds."""
    soft, hard = (
        sys.maxsize if limit == resource.RLIM_INFINITY else limit
        for limit in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    if soft >= wanted:
        return soft
    most = min(wanted, hard)
    unlimited = hard == sys.maxsize
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, resource.RLIM_INFINITY if unlimited else hard))
    return most
