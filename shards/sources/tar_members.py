"""The members of a tar archive, one after the other: a reader of headers that believes none of them.

It takes what tar and its descendants write for files and folders: the headers of V7, POSIX and GNU tar, long
names and PAX records. Sizes are held against what the archive can hold, extended headers are few and small,
and nothing is kept from one member to the next, so neither time nor memory depends on what a header claims.
tarfile reads the same archives, but takes a damaged header for the end, spins on a size of 2**70 and makes
gigabytes of a sparse map. Imports no numpy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

BLOCK = 512  # bytes
EXTENDED_CAP = 1 << 20  # bytes of one extended header: long names and PAX records
CHAIN_CAP = 16  # extended headers before one member; tar programs write three at most
RECORDS_CAP = 1000  # PAX records in one extended header
NAME_CAP = 4096  # bytes of a path
# The kinds of header, one byte each; devices are among links.
FILES, FOLDER, LINKS = b"0\0007", b"5", b"12346"
LONG_NAME, LONG_LINK, PAX, GLOBAL, SPARSE = b"L", b"K", b"xX", b"g", b"S"
EXTENDED = LONG_NAME + LONG_LINK + PAX + GLOBAL
_RECORD = re.compile(rb"([1-9][0-9]{0,6}) ([^=\n]{1,512})=")


class Stream(Protocol):
    """What members are read from: a file, or bytes that only come one after the other."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, fewer at the end only."""

    def seek(self, at: int, /) -> int:
        """Go on to byte ``at``."""


class BadTar(ValueError):  # noqa: N818 - not for callers: whoever reads the archive adds its name
    """What is wrong with an archive, where its name is not known."""


@dataclass(frozen=True, slots=True)
class Member:
    """A file, folder or something else (``kind``: a link or device) of an archive.

    Its content is ``size`` bytes from byte ``start`` of the archive on.
    """

    name: str
    kind: str
    start: int
    size: int


def members(stream: Stream, most: int) -> Iterator[Member]:
    """The members of the archive in ``stream``, of which at most ``most`` bytes can come.

    When a member is given, the stream is at its content, which may be read or left. Raises BadTar for
    anything but a whole archive, and what the stream raises.
    """
    at = 0
    while (found := _next(stream, at, most)) is not None:
        yield found
        at = found.start + -(-found.size // BLOCK) * BLOCK
        stream.seek(at)


def _next(stream: Stream, at: int, most: int) -> Member | None:
    """The member whose headers begin at byte ``at``; None at the archive's end."""
    long_name: bytes | None = None
    records: dict[bytes, bytes] = {}
    for number in range(CHAIN_CAP + 1):
        header = _header(stream.read(BLOCK))
        at += BLOCK
        if header is None:
            if number:
                raise BadTar("an extended header without a member")
            return None
        kind, name, size = header
        if kind not in EXTENDED:
            break
        _fits(at, size, most)
        if size > EXTENDED_CAP:
            raise BadTar(f"an extended header of more than {EXTENDED_CAP >> 20} MiB")
        data = stream.read(-(-size // BLOCK) * BLOCK)
        if len(data) < size:
            raise BadTar("it ends inside an extended header")
        at += len(data)
        if kind == LONG_NAME:
            long_name = data[:size].split(b"\0", 1)[0]
        elif kind == GLOBAL and _records(data[:size]):
            raise BadTar("a global header that names or sizes every member")
        elif kind in PAX:
            records |= _records(data[:size])
    else:
        raise BadTar(f"more than {CHAIN_CAP} extended headers in a row")
    name = records.get(b"path", name if long_name is None else long_name)
    if len(name) > NAME_CAP:
        raise BadTar(f"a name of {len(name)} bytes; at most {NAME_CAP} are allowed")
    if b"size" in records:
        size = _decimal(records[b"size"])
    if kind in FILES and not (kind == b"\0" and name.endswith(b"/")):
        _fits(at, size, most)
        return Member(_text(name), "file", at, size)
    # Some programs give folders and links a size, but nothing follows them.
    return Member(_text(name).rstrip("/"), "other" if kind in LINKS else "folder", at, 0)


def _header(block: bytes) -> tuple[bytes, bytes, int] | None:
    """Kind, name and size in a header; None for the block of zeros that closes an archive."""
    if len(block) < BLOCK:
        raise BadTar("it ends without the block that closes it")
    given = block[148:156]
    unsigned = sum(block) - sum(given) + 8 * ord(" ")
    if unsigned == 8 * ord(" ") and not any(given):
        return None
    told = _number(given)
    # Some old programs added the bytes up as signed ones.
    if told != unsigned and told != unsigned - 256 * sum(b > 127 for b in block[:148] + block[156:]):
        raise BadTar("a damaged header (bad checksum)")
    kind = block[156:157]
    if kind == SPARSE:
        raise BadTar("a sparse member")
    if kind not in FILES + FOLDER + LINKS + EXTENDED:
        raise BadTar("a member of unknown type")
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0]
    if prefix and block[257:263] == b"ustar\0" and kind not in LONG_NAME + LONG_LINK:
        name = prefix + b"/" + name
    return kind, name, _number(block[124:136])


def _number(field: bytes) -> int:
    """The whole number in a header: octal digits, or after a byte of 0x80 GNU's binary form."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip()
    if digits.strip(b"01234567"):
        raise BadTar("a damaged header (a number that is none)")
    return int(digits or b"0", 8)


def _records(data: bytes) -> dict[bytes, bytes]:
    """The path and size among PAX records, each ``LENGTH KEY=VALUE`` and a newline; BadTar for a sparse file.

    Everything else (times, owners, comments) means nothing here.
    """
    found: dict[bytes, bytes] = {}
    at = count = 0
    while at < len(data):
        count += 1
        if count > RECORDS_CAP:
            raise BadTar(f"an extended header of more than {RECORDS_CAP} records")
        match = _RECORD.match(data, at)
        end = at + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise BadTar("a damaged extended header")
        if match[2].startswith(b"GNU.sparse"):
            raise BadTar("a sparse member")
        if match[2] in (b"path", b"size"):
            found[match[2]] = data[match.end() : end - 1]
        at = end
    return found


def _decimal(digits: bytes) -> int:
    if not digits.isdigit() or len(digits) > 20:
        raise BadTar(f"a size that is no number ({digits[:40]!r})")
    return int(digits)


def _fits(at: int, size: int, most: int) -> None:
    if at + size > most:
        raise BadTar(f"a member of {size} bytes, more than the archive can hold")


def _text(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
