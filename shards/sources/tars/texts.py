"""Many short texts in few bytes: a list takes some seventy of each beside its own, this four."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import overload


class Texts(Sequence[str]):
    """Texts of ASCII alone, in their order."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._ends = array("I")  # four bytes: those of a tar's keys are far below
        data = bytearray()
        for text in texts:
            data += text.encode("ascii")
            self._ends.append(len(data))
        self._data = bytes(data)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[str]: ...
    def __getitem__(self, at: int | slice) -> str | Sequence[str]:
        if isinstance(at, slice):
            return [self[number] for number in range(*at.indices(len(self)))]
        number = range(len(self))[at]
        return self._data[self._ends[number - 1] if number else 0 : self._ends[number]].decode("ascii")

    def __iter__(self) -> Iterator[str]:
        begin = 0
        for end in self._ends:
            yield self._data[begin:end].decode("ascii")
            begin = end

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Texts):
            return NotImplemented
        return self._ends == other._ends and self._data == other._data

    __hash__ = None  # type: ignore[assignment]
