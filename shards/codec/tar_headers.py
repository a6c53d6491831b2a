"""Reading tar headers that somebody else wrote: their claims are held against the archive's own length.

Python's tarfile believes a header: a size of 2^70 bytes is skipped block by block, a map of holes becomes a
list of as many entries, headers that extend each other are followed by recursion, and a damaged number ends
in whatever exception ``int`` has for it. Here a claim that cannot be true, or that no data set needs, ends
the reading with tarfile.ReadError.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn, Self

from diffbase.cli import InputError

EXTENSION_CAP = 16 << 10
"""Bytes of one extended header; tarfile reads it whole, and searches it in quadratic time."""
CHAIN_CAP = 8
"""Extended headers before one member."""
NAME_CAP = 4096
"""Characters of a name, as the kernel's PATH_MAX."""
DEFLATE = 1032
"""The most bytes that deflate makes of one (zlib's technical notes)."""
EXTENSIONS = (
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
)


def member_class(length: int) -> type[tarfile.TarInfo]:
    """What ``tarfile.open`` takes as ``tarinfo``, for one archive of ``length`` bytes when unpacked."""

    class Member(tarfile.TarInfo):
        """A header that is whole: tarfile takes a damaged or missing one for the archive's end."""

        chain = 0

        @classmethod
        def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
            try:
                member = super().frombuf(buf, encoding, errors)
            except tarfile.HeaderError as error:
                if buf == bytes(512):  # the zero block that closes an archive
                    raise
                raise tarfile.ReadError(str(error)) from error
            extends = member.type in EXTENSIONS
            if not extends and member.type not in tarfile.SUPPORTED_TYPES:
                raise tarfile.ReadError("a member of unknown type")
            if member.type == tarfile.GNUTYPE_SPARSE:
                _refuse_sparse()
            if not 0 <= member.size <= length:
                raise tarfile.ReadError(f"a member of {member.size} bytes in an archive of at most {length}")
            if extends and member.size > EXTENSION_CAP:
                raise tarfile.ReadError(f"an extended header of {member.size} bytes; at most {EXTENSION_CAP}")
            Member.chain = Member.chain + 1 if extends else 0
            if Member.chain > CHAIN_CAP:
                raise tarfile.ReadError(f"more than {CHAIN_CAP} extended headers before one member")
            return member

        def _proc_gnusparse_00(self, *_: Any) -> NoReturn:
            _refuse_sparse()

        _proc_gnusparse_01 = _proc_gnusparse_10 = _proc_sparse = _proc_gnusparse_00

    return Member


def checked(member: tarfile.TarInfo, length: int) -> tarfile.TarInfo:
    """A member whose extended headers, applied by now, claim nothing impossible; else tarfile.ReadError."""
    if not 0 <= member.size <= length:
        raise tarfile.ReadError(f"a member of {member.size} bytes in an archive of at most {length}")
    if len(member.name) > NAME_CAP:
        raise tarfile.ReadError(f"a name of {len(member.name)} characters; at most {NAME_CAP}")
    if member.sparse is not None or any(key.startswith("GNU.sparse") for key in member.pax_headers):
        _refuse_sparse()
    return member


@contextmanager
def one_error() -> Iterator[None]:
    """Whatever tarfile raises for bytes that are no tar, as tarfile.ReadError."""
    try:
        yield
    except (InputError, tarfile.ReadError, EOFError):
        raise
    # Numbers that are none or too large, names that are no text, missing fields, headers in headers.
    except (tarfile.TarError, ValueError, OverflowError, LookupError, RecursionError, TypeError) as error:
        raise tarfile.ReadError(str(error) or type(error).__name__) from error


def _refuse_sparse() -> NoReturn:
    raise tarfile.ReadError("a sparse member; allowed: plain files and folders")
