"""JSON Lines: one object per line, each appended by one write, so that lines of processes do not mix."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Append one line; a new file is its owner's alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (json.dumps(entry) + "\n").encode())
    finally:
        os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every whole line that is an object; one that a kill cut short is left out. No file: no lines."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return
    for line in text.split("\n")[:-1]:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def text(entries: Iterator[Mapping[str, Any]] | list[dict[str, Any]]) -> str:
    """The lines of a file to be written anew."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)
