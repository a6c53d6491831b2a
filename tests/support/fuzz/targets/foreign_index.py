"""index.json of the tars of others, as shards.verify and a reader see it."""

from __future__ import annotations

import tempfile
import warnings
from functools import cache
from pathlib import Path

from diffbase.cli import InputError
from shards.foreign import checker
from shards.header import FILE
from shards.read import ShardReader
from tests.support.foreign_tars import write_numbers
from tests.support.fuzz.reading import indexed
from tests.support.fuzz.target import Target

WORDS = [
    b'"/etc/passwd"',
    b'"pipe:ls"',
    b'"file:///etc/passwd"',
    b'"../../../../../../dev/zero"',
    b'"place": "y.tar"',
    b'"x.tar/."',
    b'"encoding": "png"',
    b"18446744073709551621",
    b"null",
]


@cache
def whole() -> dict[str, bytes]:
    """The files of a folder of one tar with its index, by name."""
    with tempfile.TemporaryDirectory() as name:
        write_numbers(Path(name) / "x.tar", range(6))
        indexed(Path(name))
        return {path.name: path.read_bytes() for path in Path(name).iterdir()}


def target() -> Target:
    def feed(data: bytes, folder: Path) -> None:
        for name, content in {**whole(), FILE: data}.items():
            (folder / name).write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with ShardReader(folder, on_error="replace", report=lambda line: None) as reader:
                reader.read(range(len(reader)))
            faults = list(checker.problems(folder)) if reader.index.header.is_foreign else []
        assert all(fault.isprintable() and fault for fault in faults)
        if faults:
            raise InputError(faults[0])

    text = whole()[FILE]
    placed = text.replace(b'"name": "x.tar",', b'"name": "y.tar",\n     "place": "./x.tar",')
    assert placed != text
    return Target([text, placed], feed, WORDS)
