"""Files of tensors; a fault of the system is told from a file that is not there or damaged.

safetensors says "no such file" whatever the system's reason was not to open one, and of a disk that fails
later it gives only words. Files are mapped: a disk that fails under a mapping ends the process by SIGBUS,
and a launcher tries again.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffbase.system_error import named, patiently

T = TypeVar("T")


def open_tensors(path: Path) -> Any:
    """``safe_open`` of a file, patiently.

    FileNotFoundError where there is none, another OSError where the system does not give it, SafetensorError
    where it is no such file.
    """
    return _patiently(lambda: safe_open(path, framework="pt"), path)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file by name, on the CPU. Errors are those of ``open_tensors``."""
    return _patiently(lambda: load_file(path), path)


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file: the same tensors and metadata give the same bytes. OSError as of a write."""
    with writing(path):
        save_file(dict(tensors), path, metadata=dict(metadata))
        if len(metadata) > 1:
            _sort_metadata(path)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes tensors to ``path``: errors of the system are OSErrors that name it."""
    try:
        with named(path):
            yield
    except SafetensorError as error:
        raise from_words(error, path) or error from error


def _sort_metadata(path: Path) -> None:
    """Write the metadata of a file anew, sorted: safetensors keeps it in a hash map, in an order by chance.

    https://github.com/huggingface/safetensors#format: eight bytes of length, then so many of JSON.
    """
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        head = json.loads(file.read(length))
        head["__metadata__"] = dict(sorted(head["__metadata__"].items()))
        text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= length
        file.seek(8)
        file.write(text.ljust(length))


def from_words(error: Exception, path: Path) -> OSError | None:
    """The system's error that a library's words tell of; None where they tell of another.

    safetensors says "... (os error 28)", torch "unable to mmap 64 bytes from file <...>: ... (12)".
    """
    number = re.search(r"os error (\d+)|(?:open|stat|mmap)\b.* file <.*\((\d+)\)", str(error), re.DOTALL)
    if number is None:
        return None
    found = int(number[1] or number[2])
    return OSError(found, os.strerror(found), str(path))


def _patiently(give: Callable[[], T], path: Path) -> T:
    def attempt() -> T:
        try:
            return give()
        except FileNotFoundError:
            path.open("rb").close()  # raises the true reason
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path)) from None  # it has passed
        except (OSError, MemoryError, RuntimeError, SafetensorError) as error:
            raise from_words(error, path) or error from error

    return patiently(attempt, path)
