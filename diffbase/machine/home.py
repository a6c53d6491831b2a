"""Where this user's own small files lie: the XDG base directories, below ``diffcore``.

https://specifications.freedesktop.org/basedir-spec: a relative path in a variable counts as none. A user may
have no home: a container's number without an entry in passwd, a service.
"""

from __future__ import annotations

import os
from pathlib import Path

NAME = "diffcore"


def config() -> Path | None:
    """``~/.config/diffcore``; None where there is no home."""
    return _folder("XDG_CONFIG_HOME", ".config")


def state() -> Path | None:
    """``~/.local/state/diffcore``; None where there is no home."""
    return _folder("XDG_STATE_HOME", ".local/state")


def cache() -> Path | None:
    """``~/.cache/diffcore``; None where there is no home."""
    return _folder("XDG_CACHE_HOME", ".cache")


def _folder(variable: str, usual: str) -> Path | None:
    given = os.environ.get(variable, "")
    if Path(given).is_absolute():
        return Path(given) / NAME
    try:
        return Path.home() / usual / NAME
    except RuntimeError:
        return None
