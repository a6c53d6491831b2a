"""Credentials are taken out of what is shown or written down: of URLs, and of text that may hold some."""

from __future__ import annotations

import re
from pathlib import Path

HIDDEN = "***"
ADDRESS = re.compile(r"pipe:|[A-Za-z][\w+.-]*:(//|:)")
"""How an address begins, rather than a path."""
IPV6 = re.compile(r"\[[0-9A-Fa-f:.]*\]")
_URL = r"(?<![\w+.-])[\w+.-]+:/{2,}"  # from its first character on: else the search is quadratic
# user:password@ or token@ before the host; also where the password has a slash that should be quoted.
_USERINFO = re.compile(rf"({_URL})(?:[^\s/]*@|[^\s/:@]*:(?!\d+(?:/|$))\S*@)")
_QUERY = re.compile(rf"({_URL}[^\s?#]*)[?#]\S+")  # where signatures are
_TOKEN = re.compile(
    r"\b(?:gh[opsur]_|github_pat_|hf_|glpat-|sk-|xox[abeprs]-|AKIA|ASIA|eyJ)[\w.=-]{8,}|(?<=[Bb]earer )\S+"
)
_NAMED = re.compile(r"((?:token|secret|password|passwd|api[-_]?key|access[-_]?key)['\"]?\s*[=:]\s*)\S+", re.I)


def shown(place: str | Path) -> str:
    """An address as messages may show it: without user, password, query and fragment. A path as it is."""
    text = str(place)
    if isinstance(place, Path) or not ADDRESS.match(text) or text.lower().startswith("file:"):
        return text
    scheme, *rest = re.split(r"(/{2,})", re.split(r"[?#]", text, maxsplit=1)[0])
    return scheme + "".join(map(_without_user, rest))


def _without_user(part: str) -> str:
    """What follows ``//`` in an address."""
    host, slash, path = part.partition("/")
    # A port that is no number may be a part of a password, which may have a slash in it.
    if "@" not in host and re.search(r":[0-9]*[^0-9]", IPV6.sub("", host)):
        if "@" in path:
            return path.rpartition("@")[2]
        host = host.partition(":")[0] + f":{HIDDEN}"
    return host.rpartition("@")[2] + slash + path


def without_url_secrets(text: str) -> str:
    """``text`` whose URLs have no user and no password, and ``?***`` for a query."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _USERINFO.sub(r"\1", text)) if "://" in text else text


def without_credentials(text: str) -> str:
    """The same, with ``***`` for what looks like a token and for what is named a password."""
    return _NAMED.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, without_url_secrets(text)))
