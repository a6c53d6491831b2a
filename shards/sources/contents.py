"""What lies at a path: its form by its first bytes, and the first names in it. No suffix is believed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from diffbase.system_error import read_bytes, reading
from shards.sources.archive import COMPRESSED, DAMAGE, GZIP, File, files
from shards.sources.base import Contents, is_hidden
from shards.sources.zip_members import MAGIC as ZIP

HEAD_FILES = 1000  # by which a kind is found out
HEAD_CAP = 64 << 20  # bytes of a tar in which they are looked for
FOLDER_CAP = 200_000  # names of a folder that are looked through for tables
TABLES, TABLE_CAP = 4, 64 << 10  # how many tables are kept, and their bytes
PARQUET = b"PAR1"
USTAR_AT = 257  # where a tar's first header has its sign, but for the oldest


def look(path: Path) -> Contents:
    """What lies at ``path``; InputError where there is nothing that can be looked into."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise InputError(f"{path}: neither a file nor a folder")
    head = read_bytes(path, USTAR_AT + 5)
    if head.startswith(PARQUET):
        return Contents(path, "parquet", {}, {})
    if head.startswith(ZIP):
        return _archive(path, "zip")
    for magic, name in COMPRESSED.items():
        if head.startswith(magic) and magic != GZIP:
            raise InputError(
                f"{path}: compressed by {name}; allowed: tars, plain or gzipped, zips, parquet, folders"
            )
    tar = head.startswith(GZIP) or head[USTAR_AT:] == b"ustar"
    return _archive(path, "tar", sure=tar or path.name.lower().endswith((".tar", ".tgz")))


def said(contents: Contents) -> str:
    """The first names, for errors."""
    names = [str(name) for name in contents.files]
    what = "an archive of" if contents.form in ("tar", "zip") else "found"
    if not names:
        return "a parquet file" if contents.form == "parquet" else f"an empty {contents.form}"
    return f"{what} {', '.join(name[:80] for name in sorted(names)[:5])}{', ...' * (len(names) > 5)}"


def _folder(path: Path) -> Contents:
    found: dict[PurePosixPath, int] = {}
    tables: dict[PurePosixPath, bytes] = {}
    for file in islice(_names(path), FOLDER_CAP):
        if len(found) < HEAD_FILES:
            found[file] = 0
        if file.suffix.lower() == ".csv" and len(tables) < TABLES and (path / file).is_file():
            tables[file] = read_bytes(path / file, TABLE_CAP)
    return Contents(path, "folder", found, tables)


def _names(path: Path) -> Iterator[PurePosixPath]:
    """The files below ``path`` that are not hidden, those at the top first."""
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = [name for name in folders if not is_hidden(PurePosixPath(name))]
        below = PurePosixPath(Path(folder).relative_to(path))
        if len(below.parts) > 16:  # of a link in a circle
            folders.clear()
        yield from (below / name for name in names if not is_hidden(PurePosixPath(name)))


def _archive(path: Path, form: str, *, sure: bool = True) -> Contents:
    """InputError for a damaged head; where it is not ``sure`` that this is an archive, one that says so."""
    found: dict[PurePosixPath, int] = {}
    tables: dict[PurePosixPath, bytes] = {}
    try:
        with reading(path) as raw:
            for file in islice(files(path, raw, HEAD_CAP if form == "tar" else None), HEAD_FILES):
                if not is_hidden(file.path):
                    found[file.path] = file.size
                    _keep(file, tables)
    except DAMAGE as error:
        if not found and not sure:
            raise InputError(
                f"{path}: neither a tar (plain or gzipped), a zip nor parquet, by its first bytes"
            ) from error
        if not found:
            raise InputError(f"{path}: truncated or damaged archive ({error})") from error
    return Contents(path, form, found, tables)


def _keep(file: File, tables: dict[PurePosixPath, bytes]) -> None:
    if file.path.suffix.lower() == ".csv" and file.size <= TABLE_CAP and len(tables) < TABLES:
        tables[file.path] = file.open().read(file.size)
