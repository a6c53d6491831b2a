"""One tar from its first byte to its last, from a file or from an address, with its size and SHA-256."""

from __future__ import annotations

import gzip
import hashlib
import io
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, cast

from diffbase.cli import InputError
from diffbase.redaction import shown
from diffbase.system_error import NO_FILE, reading
from shards.remote.fetch import check_url, stream
from shards.sources.archive import COMPRESSED
from shards.sources.tar_members import BadTar
from shards.sources.tars.places import Place

TAR_CAP = 1 << 40  # bytes of one tar
PIECE = 1 << 20


class Hashed:
    """Bytes that come one after the other; ``seek`` goes on only, and reads what lies between."""

    def __init__(self, raw: IO[bytes]) -> None:
        """``raw`` is read, and closed by whoever opened it."""
        self._raw, self._digest, self._at = raw, hashlib.sha256(), 0

    def read(self, size: int, /) -> bytes:
        """As many bytes as are asked for, unless it ends before."""
        pieces = []
        while size and (piece := self._raw.read(min(size, PIECE))):
            self._digest.update(piece)
            self._at += len(piece)
            size -= len(piece)
            pieces.append(piece)
        return b"".join(pieces)

    def seek(self, at: int, /) -> int:
        """Go on to byte ``at``, or to the end if that comes before."""
        assert at >= self._at
        while self._at < at and self.read(min(at - self._at, PIECE)):
            pass
        return self._at

    def finish(self) -> tuple[int, str]:
        """Size and SHA-256 of all, once the rest is read, which is zeros. Raises BadTar."""
        while rest := self.read(PIECE):
            if self._at > TAR_CAP:
                raise BadTar(f"more than {TAR_CAP} bytes")
            if rest.strip(b"\0"):
                raise BadTar("more behind the block that closes it, as where cat joins tars: give each alone")
        return self._at, self._digest.hexdigest()


class _Chunks(io.RawIOBase):
    """What an address gives, as a file."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._rest = chunks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        """Fill it, unless the end comes before: a first chunk may be shorter than what tells the kind."""
        count = 0
        while count < len(buffer) and (chunk := self._rest or next(self._chunks, b"")):
            some, self._rest = chunk[: len(buffer) - count], chunk[len(buffer) - count :]
            buffer[count : count + len(some)] = some
            count += len(some)
        return count


@contextmanager
def opened(place: Place, *, compressed: bool) -> Iterator[Hashed]:
    """The bytes of the tar at ``place``; those inside a gzipped one, where ``compressed`` ones are taken.

    InputError for a file that is not there, and for one that is compressed in another way.
    """
    if isinstance(place, Path):
        try:
            file: IO[bytes] = reading(place)
        except NO_FILE as error:
            raise InputError(f"{place}: {error.strerror}") from error
    else:
        check_url(place)  # an index may have named it
        file = cast(IO[bytes], io.BufferedReader(_Chunks(stream(place, TAR_CAP)), PIECE))
    with closing(file):
        head = cast(io.BufferedReader, file).peek(6)[:6]
        kind = next((name for magic, name in COMPRESSED.items() if head.startswith(magic)), None)
        if kind == "gzip" and compressed:
            yield Hashed(cast(IO[bytes], gzip.GzipFile(fileobj=file)))
        elif kind and compressed:
            raise InputError(f"{shown(place)}: compressed ({kind}); allowed: plain tars, and gzipped ones")
        elif kind:
            raise InputError(
                f"{shown(place)}: compressed ({kind}), so no image can be read where it lies; "
                "python -m shards.pack repacks a gzipped one, or unpack it"
            )
        else:
            yield Hashed(file)
