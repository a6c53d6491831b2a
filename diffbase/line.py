"""Text that reaches a shell, a header, a file's name or a terminal: one line, and nothing in it that acts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# Control characters, line ends, halves of characters (bytes that are no UTF-8), what turns text around.
_ACTS = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\u2028\\u2029\\u202a-\\u202e\\u2066-\\u2069\\ud800-\\udfff]")
LONGEST = 4096
"""Characters: Linux allows no longer path."""
BITS = 63
"""Of a whole number: what files, tensors and other programs hold."""


def fault(text: str) -> str | None:
    """What is wrong with a line of text, in words; None for nothing."""
    if found := _ACTS.search(text):
        return f"has the character {ascii(found[0])[1:-1]}, which is not allowed: one line of text"
    if len(text) > LONGEST:
        return f"has {len(text)} characters; allowed are {LONGEST}"
    return None


def faults(name: str, value: Any) -> Iterator[str]:
    """What is wrong with the text, the paths and the whole numbers in a value: lists and mappings too."""
    if isinstance(value, str | Path):
        if problem := fault(str(value)):
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
