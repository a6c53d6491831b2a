"""One piece of news, to the webhook and to the command that a profile's ``notify`` names.

The webhook's address is a secret, which no message has and no run folder. It is read when it is used: from
the profile, which nobody but its owner may read, or from the environment variable that the profile names.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import ssl
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from diffbase import trust
from diffbase.cli import InputError, json_text, one_line
from diffbase.version import VERSION
from launch.ask import profile
from launch.ask.profile import Notify
from launch.supervise.child import die_with_parent


def deliver(settings: Notify, news: Mapping[str, Any]) -> list[str]:
    """Hand it over; what went wrong, a line each, without the address."""
    body, seconds = json_text(news, sort_keys=True).encode(), settings.seconds
    ways: list[Callable[[], str | None]] = []
    if settings.webhook_in is not None:
        ways.append(partial(_post_to, partial(_kept, settings.webhook_in), body, seconds))
    if settings.webhook_env is not None:
        ways.append(partial(_post_to, partial(_of_environment, settings.webhook_env), body, seconds))
    if settings.command:
        ways.append(partial(_run, settings.command, body, seconds))
    with ThreadPoolExecutor(3) as pool:  # at once: what hangs takes no time from the others
        said = [pool.submit(way) for way in ways]
        return [line for way in said if (line := way.result())]


def _post_to(address: Callable[[], str], body: bytes, seconds: float) -> str | None:
    try:
        return post(address(), body, seconds)
    except (InputError, OSError) as error:  # the profile is not there, or has changed
        return one_line(f"webhook: {error}")


def _kept(path: Path) -> str:
    """The address in the profile."""
    trust.check_file(path)
    try:
        now = profile.load(path).notify
    except InputError:  # it quotes what it found there: the address, in the wrong place
        raise InputError(f"{path} is no profile that can be used any more") from None
    if now is None or now.webhook is None:
        raise InputError(f"{path} has no notify.webhook any more")
    return now.webhook.get_secret_value()


def _of_environment(name: str) -> str:
    if name not in os.environ:
        raise InputError(f"the environment variable {name} is not set here")
    return os.environ[name]


def _run(command: tuple[str, ...], body: bytes, seconds: float) -> str | None:
    """The command with the news as its input, without a shell; what went wrong."""
    try:
        done = subprocess.run(
            command,
            input=body,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=seconds,
            check=False,
            preexec_fn=partial(die_with_parent, signal.SIGKILL),  # which ends when its time is over
        )
    except subprocess.TimeoutExpired:
        return one_line(f"{command[0]}: not done after {seconds:g} s")
    except (OSError, ValueError) as error:
        return one_line(f"{command[0]}: {error}")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    words = "".join(f": {line}" for line in last)
    return one_line(f"{command[0]}: exit code {done.returncode}{words}") if done.returncode else None


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The news is for this address alone."""

    def redirect_request(self, *_: Any) -> None:
        """None: the answer counts as an error."""


def post(address: str, body: bytes, seconds: float) -> str | None:
    """POST JSON to ``address``: https, or http on this machine. What went wrong, without the address."""
    try:
        parts = urlsplit(address)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        return "webhook: the address is none"
    here = _is_loopback(host)
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and here)):
        return "webhook: the address is not https (http is for this machine's own addresses)"
    handlers: list[Any] = [_NoRedirect(), urllib.request.HTTPSHandler(context=ssl.create_default_context())]
    if here:
        handlers.append(urllib.request.ProxyHandler({}))
    headers = {"Content-Type": "application/json", "User-Agent": f"diffcore/{VERSION}"}
    try:
        request = urllib.request.Request(address, body, headers, method="POST")
        with urllib.request.build_opener(*handlers).open(request, timeout=seconds):
            return None
    except urllib.error.HTTPError as error:
        return one_line(f"webhook at {host}: HTTP status {error.code}")
    except urllib.error.URLError as error:
        reason = error.reason
        words = reason.strerror or "no answer in time" if isinstance(reason, OSError) else "no connection"
        return one_line(f"webhook at {host}: {words}")
    except TimeoutError:
        return one_line(f"webhook at {host}: no answer in {seconds:g} s")
    except (OSError, ValueError, HTTPException) as error:
        return one_line(f"webhook at {host}: {type(error).__name__}")  # its text may have the address


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
