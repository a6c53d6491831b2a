"""Text that reaches a shell, a header, a file's name or a terminal: one line, and nothing in it that acts."""

from __future__ import annotations

import html
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Control characters, line ends, halves of characters (bytes that are no UTF-8), what turns text around.
_ACTS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
_ADDRESS = re.compile("[A-Za-z][A-Za-z0-9+.-]+:/")
LONGEST = 4096
"""Bytes: Linux allows no longer path."""
LONGEST_NAME = 255
"""Bytes of a file's name."""
BITS = 63
"""Of a whole number: what files, tensors and other programs hold."""


def printable(text: str) -> str:
    """``text`` as a terminal may show it: what is not printable is escaped, a line's end and a tab too."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def say(text: object, *, error: bool = False, end: str = "\n") -> None:
    """Print lines in which there may be data, as ``harmless`` shows them; ``error``: to stderr.

    Whatever has a path, a setting, an event or another program's words in it is printed so: a house test.
    """
    print(harmless(str(text)), file=sys.stderr if error else sys.stdout, end=end, flush=True)


def harmless(text: str) -> str:
    """Lines of another program's as a terminal may show them: ``printable`` but for line ends and tabs."""
    return "".join(part if part in "\n\r\t" else printable(part) for part in re.split(r"([\n\r\t])", text))


def markdown(text: object) -> str:
    """Data as a part of a line of Markdown that shows it: neither its marks nor HTML nor a new line act."""
    return re.sub(r"([\\`*\[\]|~])", r"\\\1", html.escape(printable(str(text)), quote=False))


def fault(text: str) -> str | None:
    """What is wrong with a line of text, in words; None for nothing."""
    if found := _ACTS.search(text):
        return f"has the character {ascii(found[0])[1:-1]}, which is not allowed: one line of text"
    if (length := len(text.encode())) > LONGEST:
        return f"has {length} bytes; allowed are {LONGEST}"
    return None


def path_fault(text: str) -> str | None:
    """What is wrong with a path, in words: as a line, or with a name in it that no file can have.

    An address is none, nor what a Path makes of one, which has one slash: it would become a folder ``s3:``.
    """
    if problem := fault(text):
        return problem
    if _ADDRESS.match(text):
        return "is an address, or was one; allowed: a path"
    longest = max(len(name.encode()) for name in text.split("/"))
    return f"has a name of {longest} bytes; allowed are {LONGEST_NAME}" if longest > LONGEST_NAME else None


def faults(name: str, value: Any) -> Iterator[str]:
    """What is wrong with the text, the paths and the whole numbers in a value: lists and mappings too."""
    if isinstance(value, str | Path):
        if problem := path_fault(str(value)) if isinstance(value, Path) else fault(value):
            yield f"{name} {problem}"
    elif isinstance(value, int):
        if value.bit_length() > BITS:
            yield f"{name} is a number of more than {BITS} bits"
    elif isinstance(value, Mapping):
        for key, one in value.items():
            yield from faults(f"a name in {name}", key)
            yield from faults(f"{name}.{ascii(key)[1:-1]:.100}", one)
    elif isinstance(value, list | tuple):
        for one in value:
            yield from faults(name, one)
