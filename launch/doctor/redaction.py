"""What must not be in a bug report is taken out of every text here: secrets, homes, users, hosts.

What the reader gave on the command line is left as given, but for credentials in it.
"""

from __future__ import annotations

import os
import pwd
import re
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

from diffbase.redaction import HIDDEN, without_credentials

LENGTH, READ = 400, 4000
"""Characters of a text that are shown, and that are looked at; an exception's may be pages."""
SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASS|KEY|CREDENTIAL|AUTH|COOKIE|SIGNATURE|PRIVATE|DSN|SAS", re.I)
"""Environment variables whose values are never shown, wherever they turn up."""
SHORTEST = 6
"""Characters of a secret: shorter values (1, true, basic) are words of every text."""

_HOMES = re.compile(
    r"(?:/[\w.+-]+)*?/(?:homes?\d*|[Uu]sers)/[^/\s'\":,;()\[\]<>]+|(?<![\w.~/-])/root(?![\w.-])"
)
_ADDRESS = re.compile(
    r"\[?(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}\]?:\d+|\[[0-9a-fA-F]*:[0-9a-fA-F:.]+(?:%\w+)?\](?::\d+)?"
)
_CONTROL = re.compile(r"\x1b\[[0-9;]*[mK]|[\x00-\x08\x0e-\x1f\x7f-\x9f\ue000-\uf8ff]")
_KEPT = 0xE000  # characters of private use, which no text has by now, stand for what was given


@dataclass(frozen=True)
class Redaction:
    """A function from texts to texts that may be shown to anybody: one line, of at most ``LENGTH``."""

    given: tuple[str, ...] = ()
    """What the reader gave, and may see again."""
    secrets: tuple[str, ...] = ()
    homes: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()

    @classmethod
    def here(cls, given: Iterable[str | None] = (), environ: Mapping[str, str] = os.environ) -> Redaction:
        """Of this machine, this user and this environment."""
        account = None
        with suppress(KeyError):  # a container may have no name for its user
            account = pwd.getpwuid(os.getuid())
        homes = {environ.get("HOME", ""), account.pw_dir if account else ""}
        users = {environ.get(name, "") for name in ("USER", "LOGNAME", "SUDO_USER")}
        users |= {account.pw_name if account else ""}
        hosts = {environ.get(name, "") for name in ("HOSTNAME", "SLURMD_NODENAME")}
        hosts |= {socket.gethostname(), os.uname().nodename}
        secrets = [value for name, value in environ.items() if SECRET_NAMES.search(name)]
        return cls(
            tuple(_longest_first(text for text in given if text)),
            tuple(_longest_first(text for text in map(_one_line, secrets) if len(text) >= SHORTEST)),
            tuple(_longest_first({*homes, *map(os.path.realpath, filter(None, homes))} - {"", "/"})),
            tuple(_longest_first(users - {"", "root"})),  # root is everybody's
            tuple(_longest_first({*hosts, *(host.split(".")[0] for host in hosts)} - {"", "localhost"})),
        )

    def __call__(self, text: str) -> str:
        """``text`` without what is private."""
        text = self._without_secrets(text)
        # Without a URL's query: files of that folder have it behind their names.
        given = [self._without_secrets(one).removesuffix(f"?{HIDDEN}") for one in self.given]
        given = [
            one for one in given if self._without_names(one) != one
        ]  # /home is public, /home/x below it not
        for number, one in enumerate(given):
            # As a whole path only: a short word within another path would hide that one from what follows.
            text = re.sub(rf"(?<![\w/.~+-]){re.escape(one)}(?![\w-])", chr(_KEPT + number), text)
        text = self._without_names(text)
        for number, one in enumerate(given):
            text = text.replace(chr(_KEPT + number), one)
        return text if len(text) <= LENGTH else text[: LENGTH - 3] + "..."

    def _without_names(self, text: str) -> str:
        for home in self.homes:
            text = re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text, flags=re.A)
        text = _HOMES.sub("~", text)
        for names, instead in ((self.users, "USER"), (self.hosts, "HOST")):
            for name in names:
                whole = rf"(?:(?<![^\W_])|(?<=%2F)){re.escape(name)}(?![^\W_])"
                text = re.sub(whole, instead, text, flags=re.A)
        return _ADDRESS.sub("ADDRESS", text)

    def _without_secrets(self, text: str) -> str:
        text = _one_line(text)
        for secret in self.secrets:
            for form in (secret, quote(secret, safe="")):
                text = text.replace(form, HIDDEN)
        return without_credentials(text)


def _one_line(text: str) -> str:
    """Without line breaks and control characters, and no longer than patterns can be looked for in."""
    if len(text) > READ:
        text = text[:READ].rpartition(" ")[0]  # a secret that was cut would not be recognised
    return " ".join(_CONTROL.sub(" ", text).split())


def _longest_first(texts: Iterable[str]) -> list[str]:
    """One that holds another must be looked for before it."""
    return sorted({text.rstrip("/") or text for text in texts}, key=lambda text: (-len(text), text))
