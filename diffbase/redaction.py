"""Credentials are taken out of what is shown or written down: of URLs, and of text that may hold some."""

from __future__ import annotations

import re

HIDDEN = "***"
_URL = r"[A-Za-z][\w+.-]*://"
# user:password@ or token@ before the host; also where the password has a slash that should be quoted.
_USERINFO = re.compile(rf"({_URL})(?:[^\s/]*@|[^\s/:@]*:(?!\d+(?:/|$))\S*@)")
_QUERY = re.compile(rf"({_URL}[^\s?#'\"<>]*)[?#][^\s'\"<>)]+")  # where signatures are
_TOKEN = re.compile(
    r"\b(?:gh[opsur]_|github_pat_|hf_|glpat-|sk-|xox[abeprs]-|AKIA|ASIA|eyJ)[\w.=-]{8,}|(?<=[Bb]earer )\S+"
)
_NAMED = re.compile(r"((?:token|secret|password|passwd|api[-_]?key|access[-_]?key)['\"]?\s*[=:]\s*)\S+", re.I)


def shown(url: str) -> str:
    """A URL without user, password, query and fragment; other text as it is."""
    if not re.match(_URL, url):
        return url
    return re.split("[?#]", _USERINFO.sub(r"\1", url), maxsplit=1)[0]


def without_url_secrets(text: str) -> str:
    """``text`` whose URLs have no user and no password, and ``?***`` for a query."""
    return _QUERY.sub(rf"\1?{HIDDEN}", _USERINFO.sub(r"\1", text)) if "://" in text else text


def without_credentials(text: str) -> str:
    """The same, with ``***`` for what looks like a token and for what is named a password."""
    return _NAMED.sub(rf"\1{HIDDEN}", _TOKEN.sub(HIDDEN, without_url_secrets(text)))
