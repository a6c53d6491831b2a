"""fsspec's file systems, and what their errors mean: a mistake in what was given, or trouble that may pass.

Every backend has its own errors. They are told apart by their names and codes: a scheme's package need not be
there.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import parse_qsl

from diffbase.cli import InputError
from diffbase.redaction import shown
from diffbase.system_error import NO_DESCRIPTORS
from shards.remote.http_client import BrokenError

# botocore's, google.auth's, azure's, huggingface_hub's and paramiko's errors of missing or wrong credentials.
_CREDENTIALS = re.compile(
    "Credential|NoAuthToken|SSOToken|TokenRetrieval|ProfileNotFound|ClientAuthentication|RefreshError|"
    "GatedRepo|AuthenticationException"
)
_STALE = ("ExpiredToken", "InvalidToken", "TokenRefreshRequired")  # S3's, under 400
# The address fits not the scheme, or its package is missing.
_MISTAKES = (ValueError, TypeError, ImportError, NotImplementedError)
_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ENOTDIR)


class NotThereError(InputError):
    """Nothing is at an address."""


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a checked address (``fetch.check_url``), and the path in it."""
    from fsspec.core import url_to_fs

    try:
        with translated(url):
            system, path = url_to_fs(url)  # some connect at once
            return system, path
    except BrokenError as error:
        if isinstance(error.__cause__, OSError):
            raise
        # Of a package that is missing, or what a backend makes of the address.
        raise InputError(f"{shown(url)}: {error}") from error.__cause__


@contextmanager
def translated(url: str) -> Iterator[None]:
    """Around calls of a file system about ``url``: what they raise becomes one of three.

    InputError for a mistake in what was given (NotThereError where nothing is there), OSError where this
    process has no more descriptors, BrokenError for what may pass.
    """
    try:
        yield
    except InputError:
        raise
    except (FileNotFoundError, IsADirectoryError) as error:
        text = error.strerror or told(error, url)
        says = text if " " in text and "/" not in text else os.strerror(errno.ENOENT)  # else a bare path
        raise NotThereError(f"{shown(url)}: {says}") from error
    except Exception as error:
        check_descriptors(error)
        text = getattr(error, "strerror", None) or told(error, url) or type(error).__name__
        if isinstance(error, NotImplementedError):
            text = "its scheme does not allow this"
        if _is_refusal(error):
            raise InputError(f"{shown(url)}: no access ({text})") from error
        if isinstance(error, _MISTAKES) or getattr(error, "errno", None) in _LASTING:
            raise InputError(f"{shown(url)}: {text}") from error
        name = type(error).__name__
        raise BrokenError(f"{name}: {text}" if text != name else name) from error


def check_descriptors(error: object) -> None:
    """Raise an error of too many open files itself: who asked may have some to spare."""
    if isinstance(error, OSError) and error.errno in NO_DESCRIPTORS:
        raise error


def told(error: BaseException, url: str) -> str:
    """The text of an error about ``url``, which may repeat it."""
    query = url.partition("?")[2]
    secrets = [query, *(value for _, value in parse_qsl(query) if len(value) >= 8)]
    for pair in re.findall(r"//([^/@]*)@", url):
        secrets += [pair, pair.partition(":")[2]]
    text = str(error).replace(url, shown(url))
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return text


def _is_refusal(error: BaseException) -> bool:
    """Whether credentials are missing or wrong, or may not do this: that does not pass by itself."""
    one: BaseException | None = error
    for _ in range(8):  # what a backend made of another error
        if one is None:
            break
        response = getattr(one, "response", None)
        codes = [getattr(one, name, None) for name in ("status", "status_code", "code")]
        if isinstance(response, dict):  # botocore's
            codes.append(response.get("ResponseMetadata", {}).get("HTTPStatusCode"))
            codes.append(response.get("Error", {}).get("Code"))
        codes.append(getattr(response, "status_code", None))  # of requests and httpx
        if (
            isinstance(one, PermissionError)
            or any(_CREDENTIALS.search(kind.__name__) for kind in type(one).__mro__)
            or any(code in (401, 403, "401", "403", *_STALE) for code in codes if isinstance(code, int | str))
            or (isinstance(one, OSError) and str(one).startswith("Forbidden"))  # gcsfs
        ):
            return True
        one = one.__cause__ or one.__context__
    return False
