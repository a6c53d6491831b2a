"""Tables of labels in blocks of rows: CSV and TSV, JSON lines, parquet, and CelebA's list.

What a table is, its bytes say, never its name. Lines, fields, columns and rows have limits.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import IO, TypeVar

from diffbase.cli import InputError
from shards.sources.labels.columns import NESTED, Cell, shown
from shards.sources.labels.parquet import MAGIC, parquet_blocks

Block = dict[str, Sequence[Cell]]
"""Columns of equal length: some rows of a table."""
Row = TypeVar("Row")
ROWS = 4096  # of a block
ROWS_CAP = 4_000_000
COLUMNS_CAP = 1024
BLOCK_CAP = 16 << 20  # characters and cells of a block, besides its last row
LINE_CAP = 1 << 20  # characters; a field of a CSV may have 131,072
HEAD = 1 << 16  # bytes by which a table is recognised
CELEBA_KEY = "image"  # the list has no name for its first column


def blocks(stream: IO[bytes], where: str) -> Iterator[Block]:
    """The rows of a table; ``where`` names it in errors. InputError for what is no table, or too large."""
    head = stream.read(HEAD)
    stream.seek(0)
    rows = 0
    columns: set[str] = set()
    for block in _blocks(stream, head, where):
        rows += len(next(iter(block.values()), ()))
        columns |= block.keys()
        if rows > ROWS_CAP:
            raise InputError(f"{where}: more than {ROWS_CAP} rows")
        _check_names(list(columns), where)
        yield block
    if not rows:
        raise InputError(f"{where}: a table without rows")


def _blocks(stream: IO[bytes], head: bytes, where: str) -> Iterator[Block]:
    if head.startswith(MAGIC):
        yield from parquet_blocks(stream, where, ROWS)
        return
    encoding = "utf-16" if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    first = head.decode(encoding, "replace")
    lines = _lines(io.TextIOWrapper(stream, encoding, newline=""), where)
    try:
        if first.lstrip().startswith("{"):
            yield from _jsonl(lines, where)
        elif _is_celeba(first):
            yield from _celeba(lines, where)
        else:
            whole = first.splitlines(keepends=True)
            yield from _csv(lines, _delimiter(whole[:-1] if len(head) == HEAD else whole), where)
    except UnicodeError as error:
        raise InputError(f"{where}: not a table in UTF-8 ({error.reason})") from error  # type: ignore[attr-defined]
    except csv.Error as error:
        raise InputError(f"{where}: not a CSV ({error})") from error


def _lines(text: io.TextIOWrapper, where: str) -> Iterator[str]:
    while line := text.readline(LINE_CAP + 1):
        if len(line) > LINE_CAP:
            raise InputError(f"{where}: a line of more than {LINE_CAP} characters")
        yield line


def _chunks(rows: Iterable[Row], weight: Callable[[Row], int]) -> Iterator[list[Row]]:
    chunk: list[Row] = []
    held = 0
    for row in rows:
        chunk.append(row)
        held += weight(row)
        if len(chunk) == ROWS or held > BLOCK_CAP:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk


def _check_names(names: Sequence[str], where: str) -> None:
    if len(names) > COLUMNS_CAP:
        raise InputError(f"{where}: more than {COLUMNS_CAP} columns")
    if len(set(names)) < len(names):
        doubled = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{where}: two columns have the name {doubled!r:.60}")


def _csv(lines: Iterator[str], delimiter: str, where: str) -> Iterator[Block]:
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True)
    names = [shown(name) for name in next((row for row in reader if any(map(str.strip, row))), [])]
    while names and not names[-1]:  # of a delimiter at the line's end
        names.pop()
    _check_names(names, where)

    def whole() -> Iterator[list[str]]:
        for row in reader:
            if not any(map(str.strip, row)):
                continue
            if len(row) != len(names):
                if len(row) < len(names) or any(map(str.strip, row[len(names) :])):
                    raise InputError(
                        f"{where}, line {reader.line_num}: {len(row)} fields; its first line has {len(names)}"
                    )
                del row[len(names) :]
            yield row

    for rows in _chunks(whole(), lambda row: sum(map(len, row)) + len(row)):
        yield dict(zip(names, zip(*rows, strict=True), strict=True))


def _delimiter(lines: Sequence[str]) -> str:
    """The one by which a table's first lines have equally many fields, and most."""

    def fields(delimiter: str) -> tuple[bool, int]:
        rows: list[list[str]] = []
        try:
            for row in islice(csv.reader(lines, delimiter=delimiter, skipinitialspace=True, strict=True), 50):
                rows.append(row)
        except csv.Error:  # what follows may be cut
            pass
        widths = [len(row) for row in rows if any(map(str.strip, row))]
        return len(set(widths)) == 1 and widths[0] > 1, widths[0] if widths else 0

    return max(",\t;|", key=fields)


def _is_celeba(first: str) -> bool:
    """A count, then names, then a name and as many values as there are names; spaces between them."""
    count, names, row, *_ = [*first.split("\n", 3), "", "", ""]
    number = count.strip()
    return number.isascii() and number.isdigit() and 0 < len(names.split()) == len(row.split()) - 1


def _celeba(lines: Iterator[str], where: str) -> Iterator[Block]:
    told = next(lines).strip()
    names = [CELEBA_KEY, *next(lines).split()]
    _check_names(names, where)
    seen = 0

    def whole() -> Iterator[list[str]]:
        for number, line in enumerate(lines, start=3):
            row = line.split()
            if row and len(row) != len(names):
                raise InputError(f"{where}, line {number}: {len(row)} fields instead of {len(names)}")
            if row:
                yield row

    for rows in _chunks(whole(), lambda row: sum(map(len, row)) + len(row)):
        seen += len(rows)
        yield dict(zip(names, zip(*rows, strict=True), strict=True))
    if told.lstrip("0") != str(seen):
        raise InputError(f"{where}: {seen} rows; its first line says {told:.20}")


def _jsonl(lines: Iterator[str], where: str) -> Iterator[Block]:
    def whole() -> Iterator[tuple[int, dict[str, Cell]]]:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}, line {number}: not JSON ({error})") from error
            if not isinstance(row, dict):
                raise InputError(f"{where}, line {number}: not an object of JSON")
            names = [shown(name) for name in row]
            _check_names(names, f"{where}, line {number}")
            cells = (NESTED if isinstance(cell, dict | list) else cell for cell in row.values())
            yield len(line), dict(zip(names, cells, strict=True))

    for rows in _chunks(whole(), lambda row: row[0]):
        names = dict.fromkeys(name for _, row in rows for name in row)
        _check_names(list(names), where)
        yield {name: [row.get(name) for _, row in rows] for name in names}
