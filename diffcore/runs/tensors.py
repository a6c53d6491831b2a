"""Files of tensors; a fault of the system is told from a file that is not there or damaged.

safetensors says "no such file" whatever the system's reason was not to open one, and of a disk that fails
later it gives only words. Files are mapped: a disk that fails under a mapping ends the process by SIGBUS,
and a launcher tries again.

A ``SealedFile`` is not: its pieces can be checked alone, and who needs a part of one reads that part.
COMPLETE says of such a file

    bytes    its size
    pieces   SHA-256 of every ``PIECE`` bytes
    kinds    weights, ema, exp_avg, ...
    parts    parameter -> [start, count]: these elements of it, in each of ``kinds``
    only     kind -> parameters, of a kind that some of ``parts`` have and others have not

so that a reader opens only files that hold what it wants, and reads nothing that it has not checked. Where in
the file a tensor begins is in its own head (https://github.com/huggingface/safetensors#format), which is
checked like the rest. Code before wrote one ``sha256`` of the whole file; it is read as it was.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from diffbase.system_error import named, open_plain, patiently, reading

T = TypeVar("T")
PIECE = 256 << 10
KEPT = 4
"""Pieces that a reader keeps: weights, EMA and moments of neighbours often lie in the same ones."""
DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16}

Count = Annotated[int, Field(strict=True, ge=0, le=2**53)]
Name = Annotated[str, Field(min_length=1, max_length=1000)]
Pair = Annotated[list[Count], Field(min_length=2, max_length=2)]


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


# --- files that are checked by pieces ---------------------------------------------------------------------


class DamagedError(InputError):
    """A file of a checkpoint that is not what COMPLETE says."""


class Seal(BaseModel):
    """What COMPLETE says of a file."""

    model_config = ConfigDict(strict=True)

    bytes: Count
    sha256: Annotated[str, Field(max_length=64)] = ""
    """Of the whole; where there are ``pieces``, nothing."""
    pieces: Annotated[list[Annotated[str, Field(max_length=64)]], Field(max_length=10**6)] = []
    kinds: Annotated[list[Name], Field(max_length=100)] = []
    parts: Annotated[dict[Name, Pair], Field(max_length=10**6)] = {}
    only: Annotated[dict[Name, Annotated[list[Name], Field(max_length=10**6)]], Field(max_length=100)] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> Seal:
        if bool(self.sha256) == bool(self.pieces) or (self.pieces and len(self.pieces) != self._count()):
            raise ValueError("needs sha256, or pieces as many as its bytes make")
        if not self.parts.keys() >= {name for names in self.only.values() for name in names}:
            raise ValueError("only names a parameter that is not in parts")
        return self

    def _count(self) -> int:
        return -(-self.bytes // PIECE)

    def places(self) -> dict[str, tuple[int, int]]:
        """(start, count) of every tensor of the file, by "kind/parameter"."""
        return {
            f"{kind}/{name}": (self.parts[name][0], self.parts[name][1])
            for kind in self.kinds
            for name in self.only.get(kind, self.parts)
        }


def seal_of(path: Path, tensors: Mapping[str, Tensor], starts: Mapping[str, int]) -> dict[str, Any]:
    """The ``Seal``, as JSON has it, of a file of flat tensors, which is read back. OSError as of a read."""
    pieces = []
    with reading(path) as file:
        while piece := file.read(PIECE):
            pieces.append(hashlib.sha256(piece).hexdigest())
        size = file.tell()
    kinds = list(dict.fromkeys(key.partition("/")[0] for key in tensors))
    parts = {key.partition("/")[2]: [starts[key], tensors[key].numel()] for key in tensors}
    names = {kind: [n for n in parts if f"{kind}/{n}" in tensors] for kind in kinds}
    only = {kind: some for kind, some in names.items() if len(some) < len(parts)}
    said = Seal(bytes=size, pieces=pieces, kinds=kinds, parts=parts, only=only)
    places = {key: (starts[key], tensor.numel()) for key, tensor in tensors.items()}
    assert said.places() == places, "every kind has the same parts of a parameter"
    return said.model_dump(exclude_defaults=True)


class _Metadata(BaseModel):
    starts: str


class _Entry(BaseModel):
    """A tensor, as a safetensors file's head tells of it."""

    model_config = ConfigDict(strict=True)

    dtype: Name
    shape: Annotated[list[Count], Field(max_length=16)]
    data_offsets: Pair


class Starts(BaseModel):
    """The metadata of a shard: where each of its tensors begins in its parameter."""

    starts: Annotated[dict[Name, Count], Field(max_length=10**7)]


@dataclass(frozen=True)
class Placed:
    """A flat tensor of a file, from byte ``offset``: elements ``start`` .. ``start + count``."""

    start: int
    count: int
    offset: int
    dtype: torch.dtype


class SealedFile:
    """A file that COMPLETE seals by pieces. Every byte that it gives was checked.

    Errors: DamagedError, and OSError as of ``patiently`` where the disk does not say. It is read and not
    mapped: a disk that fails is an error, and not the process's end.
    """

    def __init__(self, path: Path, seal: Seal) -> None:
        self.path, self.seal = path, seal
        self._descriptor = patiently(lambda: open_plain(path), path)
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._kept: dict[int, bytes] = {}
        self._tensors: dict[str, Placed] | None = None

    def check(self) -> None:
        """Every piece, and that its head says what COMPLETE does."""
        for number in range(len(self.seal.pieces)):
            self._piece(number)
        self.tensors()

    def tensors(self) -> dict[str, Placed]:
        """What its head says is in it. DamagedError where COMPLETE says otherwise."""
        if self._tensors is None:
            length = int.from_bytes(self._bytes(0, 8), "little")
            where = f"{self.path}: head"
            told = json_file.parse(bytes(self._bytes(8, length)), where)
            self._tensors = self._placed(told if isinstance(told, dict) else {}, 8 + length, where)
            if {name: (t.start, t.count) for name, t in self._tensors.items()} != self.seal.places():
                raise DamagedError(f"{self.path}: does not hold what COMPLETE says")
        return self._tensors

    def _placed(self, head: dict[str, Any], data: int, where: str) -> dict[str, Placed]:
        text = validated(_Metadata, head.pop("__metadata__", {}), where).starts
        told = json_file.parse(text.encode(), f"{where}: starts")
        starts = validated(Starts, {"starts": told}, where).starts
        found = {}
        for name, tree in head.items():
            entry = validated(_Entry, tree, f"{where}: {name}")
            begin, end = entry.data_offsets
            dtype = DTYPES.get(entry.dtype)
            if dtype is None or len(entry.shape) != 1 or name not in starts:
                raise DamagedError(f"{where}: {name} is no flat tensor of floats with its start")
            if end - begin != prod(entry.shape) * dtype.itemsize or data + end > self.seal.bytes:
                raise DamagedError(f"{where}: {name} is not within the file")
            found[name] = Placed(starts[name], entry.shape[0], data + begin, dtype)
        return found

    def read(self, name: str, first: int, count: int) -> Tensor:
        """``count`` elements of one of its tensors, from its ``first``: [count], CPU."""
        placed = self.tensors()[name]
        size = placed.dtype.itemsize
        if not count:
            return torch.empty(0)
        return torch.frombuffer(
            self._bytes(placed.offset + first * size, count * size), dtype=placed.dtype
        ).float()

    def _bytes(self, start: int, size: int) -> bytearray:
        if start + size > self.seal.bytes:
            raise DamagedError(f"{self.path}: ends before its head says")
        result, end = bytearray(size), start + size
        for number in range(start // PIECE, -(-end // PIECE)):
            low, high = max(start, number * PIECE), min(end, (number + 1) * PIECE)
            piece = memoryview(self._piece(number))
            result[low - start : high - start] = piece[low - number * PIECE : high - number * PIECE]
        return result

    def _piece(self, number: int) -> bytes:
        if (piece := self._kept.pop(number, None)) is None:
            start = number * PIECE
            piece = patiently(lambda: self._read(start), self.path, self._open_again)
            if hashlib.sha256(piece).hexdigest() != self.seal.pieces[number]:
                raise DamagedError(
                    f"{self.path}: bytes {start} to {start + PIECE} do not have the sha256 that COMPLETE says"
                )
        self._kept[number] = piece  # the newest last
        if len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        return piece

    def _read(self, start: int) -> bytes:
        wanted, data = min(PIECE, self.seal.bytes - start), b""
        while len(data) < wanted:
            more = os.pread(self._descriptor, wanted - len(data), start + len(data))
            if not more:
                if os.fstat(self._descriptor).st_size >= start + wanted:  # the system's fault, not its end
                    raise OSError(errno.EIO, os.strerror(errno.EIO), str(self.path))
                raise DamagedError(f"{self.path}: ends before byte {start + wanted}")
            data += more
        return data

    def _open_again(self) -> None:
        """A file server that was restarted knows the old descriptor no more."""
        with contextlib.suppress(OSError):
            fresh = open_plain(self.path)
            os.dup2(fresh, self._descriptor, inheritable=False)
            os.close(fresh)
