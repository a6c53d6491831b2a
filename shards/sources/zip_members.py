"""The members of a zip, by its directory: a reader that believes no size and no place in it.

What is stored or deflated is read, with zip64's large numbers and UTF-8 or old names. Nothing is unpacked to
disk, and no member to more bytes than it says.
zipfile takes a directory of any size into memory first. Imports no numpy.
"""

from __future__ import annotations

import stat
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from shards.sources.tar_members import NAME_CAP

MAGIC = (b"PK\3\4", b"PK\5\6")  # of the first member, or of a zip that has none
DEFLATED = 1032  # bytes that deflate makes of one at most
METHODS = (0, 8)  # stored, deflated
_END, _END64, _LOCATOR = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_ENTRY, _LOCAL = struct.Struct("<4s4B4H3L5H2L"), struct.Struct("<4s5H3L2H")
_WINDOWS, _UNIX = (0, 10, 11), (3, 19)  # systems that wrote a member
_IN_ZIP64 = 0xFFFFFFFF


class BadZip(ValueError):  # noqa: N818 - not for callers: whoever reads the archive adds its name
    """What is wrong with an archive, where its name is not known."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A file, folder or something else (``kind``: a link or device) of a zip; ``size`` in bytes, unpacked."""

    name: str
    kind: str
    size: int
    packed: int
    crc: int
    method: int
    encrypted: bool
    start: int  # of its own header


def entries(file: IO[bytes], size: int) -> Iterator[Entry]:
    """The members of a zip of ``size`` bytes, in its directory's order; BadZip for a damaged one."""
    first, length, shift = _directory(file, size)
    file.seek(first)
    left, bodies = length, 0
    at = first
    while left:
        file.seek(at)
        head = file.read(min(_ENTRY.size, left))
        if len(head) < _ENTRY.size or not head.startswith(b"PK\1\2"):
            raise BadZip("a damaged directory")
        _, _, system, _, _, flags, method, _, _, crc, packed, unpacked, *rest = _ENTRY.unpack(head)
        name_bytes, extra_bytes, comment_bytes, _, _, attributes, start = rest
        whole = _ENTRY.size + name_bytes + extra_bytes + comment_bytes
        if whole > left:
            raise BadZip("a damaged directory")
        if name_bytes > NAME_CAP:
            raise BadZip(f"a name of {name_bytes} bytes; at most {NAME_CAP} are allowed")
        raw, extra = file.read(name_bytes), file.read(extra_bytes)
        unpacked, packed, start = _large(extra, [unpacked, packed, start])
        start += shift
        bodies += packed
        if start + _LOCAL.size + packed > first or bodies > first:
            raise BadZip("members that lie outside of it, or in each other")
        name = _text(raw, utf8=bool(flags & 0x800))
        if system in _WINDOWS:
            name = name.replace("\\", "/")
        kind = "folder" if name.endswith("/") else "file"
        if system in _UNIX and stat.S_IFMT(attributes >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
            kind = "other"
        yield Entry(name.rstrip("/"), kind, unpacked, packed, crc, method, bool(flags & 0x41), start)
        at, left = at + whole, left - whole


def content(file: IO[bytes], entry: Entry) -> bytes:
    """The bytes of a member that is not encrypted, by one of METHODS, held against their checksum.

    BadZip for anything else.
    """
    if entry.size > entry.packed * (DEFLATED if entry.method else 1):
        raise BadZip(f"{entry.name} says {entry.size} bytes, more than {entry.packed} can hold")
    file.seek(entry.start)
    head = file.read(_LOCAL.size)
    if len(head) < _LOCAL.size or not head.startswith(MAGIC[0]):
        raise BadZip(f"no member where {entry.name} should be")
    _, _, _, method, *_, name_bytes, extra_bytes = _LOCAL.unpack(head)
    if method != entry.method:
        raise BadZip(f"{entry.name}: its head differs from the directory's")
    file.seek(name_bytes + extra_bytes, 1)
    data = file.read(entry.packed)
    if entry.method:
        inflater = zlib.decompressobj(-15)
        data = inflater.decompress(data, entry.size + 1)
        if not inflater.eof:
            raise BadZip(f"{entry.name} is cut, or larger than it says")
    if len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise BadZip(f"{entry.name} is damaged (its size or checksum is another one)")
    return data


def _directory(file: IO[bytes], size: int) -> tuple[int, int, int]:
    """Where the directory begins, its bytes, and how many bytes lie before what offsets count from."""
    tail_at = max(0, size - _END.size - 0xFFFF)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\5\6")
    if at < 0 or len(tail) - at < _END.size:
        raise BadZip("it ends without its directory")
    _, disk, _, _, count, length, first, _ = _END.unpack_from(tail, at)
    end = tail_at + at
    large = _IN_ZIP64 in (length, first)
    if large or count == 0xFFFF:
        end64 = end - _LOCATOR.size - _END64.size
        file.seek(max(0, end64))
        told = file.read(_END64.size + 4)
        if large or told.endswith(b"PK\6\7"):  # of exactly 65,535 members, some programs write no zip64
            if not told.startswith(b"PK\6\6") or not told.endswith(b"PK\6\7"):
                raise BadZip("a damaged end")
            *_, length, first = _END64.unpack_from(told)
            end = end64
    if disk:
        raise BadZip("one part of several")
    shift = end - length - first
    if shift < 0:
        raise BadZip("a directory that lies outside of it")
    return first + shift, length, shift


def _large(extra: bytes, numbers: list[int]) -> list[int]:
    """Sizes and place of a member, taken from zip64's field where they are too large for theirs."""
    at, wide = 0, b""
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == 1:
            wide = extra[at + 4 : at + 4 + length]
        at += 4 + length
    found = iter(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
    return [next(found, number) if number == _IN_ZIP64 else number for number in numbers]


def _text(name: bytes, *, utf8: bool) -> str:
    """A name; many programs write UTF-8 without saying so."""
    if utf8:
        return name.decode("utf-8", "surrogateescape")
    try:
        return name.decode("utf-8")
    except UnicodeDecodeError:
        return name.decode("cp437")
