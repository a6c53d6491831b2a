"""What errors of fsspec's backends mean: told by their names and codes, which these classes have."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from diffbase.cli import InputError
from shards.remote import fetch
from shards.remote.filesystem import NotThereError, translated
from shards.remote.http_client import BrokenError


def named(name: str, text: str = "no", base: type[BaseException] = Exception, **more: Any) -> BaseException:
    error = type(name, (base,), {})(text)
    for key, value in more.items():
        setattr(error, key, value)
    return error


class Answer:
    status_code = 403


REFUSED = {
    "botocore, none": named("NoCredentialsError"),
    "botocore, half": named("PartialCredentialsError"),
    "botocore, profile": named("ProfileNotFound"),
    "botocore, expired": named("ClientError", response={"Error": {"Code": "ExpiredToken"}}),
    "botocore, 403": named("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 403}}),
    "google, none": named("DefaultCredentialsError"),
    "google, old": named("RefreshError"),
    "gcsfs, 401": named("HttpError", code=401),
    "gcsfs, 403": OSError("Forbidden: b/x"),
    "azure": named("ClientAuthenticationError"),
    "azure, 403": named("HttpResponseError", status_code=403),
    "aiohttp": named("ClientResponseError", status=401),
    "requests": named("HTTPError", base=OSError, response=Answer()),
    "huggingface_hub": named("GatedRepoError", base=OSError),
    "paramiko": named("AuthenticationException"),
    "the system": PermissionError(errno.EACCES, "Permission denied"),
    "the system, by number": OSError(errno.EPERM, "Operation not permitted"),
}
BROKEN = {
    "a server": named("ServerError", code=503),
    "s3 busy": OSError(errno.EBUSY, "SlowDown"),
    "a connection": ConnectionResetError(errno.ECONNRESET, "reset"),
    "botocore": named("EndpointConnectionError"),
    "azure": named("HttpResponseError", status_code=500),
    "a code that is a function": named("Odd", code=lambda: 403),
}


@pytest.mark.parametrize("why", REFUSED)
@pytest.mark.parametrize("wrapped", [False, True])
def test_credentials_are_bad_input(why: str, wrapped: bool) -> None:
    with pytest.raises(InputError, match=r"^s3://h/x: no access \(") as caught, translated("s3://u:p@h/x?s"):
        if wrapped:
            raise OSError("Input/output error") from REFUSED[why]
        raise REFUSED[why]
    assert not isinstance(caught.value, NotThereError)


@pytest.mark.parametrize("why", BROKEN)
def test_what_may_pass_is_not(why: str) -> None:
    with pytest.raises(BrokenError), translated("s3://h/x"):
        raise BROKEN[why]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (FileNotFoundError("b/x/y"), "No such file or directory"),
        (FileNotFoundError("The specified bucket does not exist"), "The specified bucket does not exist"),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/x"), "No such file or directory"),
    ],
)
def test_nothing_there_is_told_apart(error: Exception, says: str) -> None:
    with pytest.raises(NotThereError, match=f"^s3://h/x: {says}$"), translated("s3://h/x"):
        raise error


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_closed_disk_does_not_pass(number: int) -> None:
    with pytest.raises(InputError), translated("file:///x"):
        raise OSError(number, "no")


def test_credentials_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def refuse(*_: object, **__: object) -> None:
        asked.append(1)
        raise REFUSED["botocore, none"]

    monkeypatch.setattr("fsspec.implementations.memory.MemoryFileSystem.open", refuse)
    with pytest.raises(InputError, match="no access"):
        fetch.fetch_small("memory://set/index.json", 10)
    assert asked == [1]
