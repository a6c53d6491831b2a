"""Parquet tables, block by block; needs pyarrow, the extra ``tables``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from diffbase.cli import InputError
from diffbase.extras import extra
from shards.sources.labels.columns import NESTED, Cell, shown

MAGIC = b"PAR1"
GROUP_CAP = 4 << 30  # bytes of a group of rows, of which one column at a time is unpacked
FOOTER_CAP = 64 << 20  # bytes of one text in the description of the columns, and things in one of its lists


def parquet_blocks(stream: IO[bytes], where: str, rows: int) -> Iterator[dict[str, Sequence[Cell]]]:
    """The columns of a parquet file, some ``rows`` at a time. InputError for what is no such file.

    Of lists, structs and bytes nothing is read: NESTED stands there.
    """
    file = open_parquet(stream, where)
    import pyarrow

    schema, metadata = file.schema_arrow, file.metadata
    plain = [field.name for field in schema if is_plain(field.type)]
    check_unpacked(metadata, where)
    texts = [n for n in plain if pyarrow.types.is_string(t := schema.field(n).type) or _is_wide(t)]
    with faults(where):
        # As places in a dictionary: a table may repeat one long text a million times.
        file = open_parquet(stream, where, metadata=metadata, read_dictionary=texts)
        for batch in file.iter_batches(rows, columns=plain, use_threads=False):
            batch.validate(full=True)  # arrow takes a damaged dictionary's places as they are
            block: dict[str, Sequence[Cell]] = {
                shown(name): cells_of(batch.column(name)) if name in plain else [NESTED] * batch.num_rows
                for name in schema.names
            }
            yield block


def open_parquet(stream: IO[bytes], where: str, **options: Any) -> Any:
    """A parquet file of pyarrow's, whose columns' names, as ``shown``, differ.

    InputError for what is no such file.
    """
    with extra("tables", f"{where}, a parquet table,"):
        from pyarrow import parquet
    limits = {"thrift_string_size_limit": FOOTER_CAP, "thrift_container_size_limit": FOOTER_CAP}
    with faults(where):
        file = parquet.ParquetFile(stream, **limits, **options)
        names = Counter(map(shown, file.schema_arrow.names))
    for name, count in names.items():
        if count > 1:
            raise InputError(f"{where}: two columns have the name {name!r:.60}")
    return file


@contextmanager
def faults(where: str) -> Iterator[None]:
    """Around what reads a parquet file, named ``where``: InputError for what is wrong with it."""
    import pyarrow

    try:
        yield
    except InputError:
        raise
    except (pyarrow.ArrowException, ValueError, KeyError, NotImplementedError, MemoryError) as error:
        raise InputError(f"{where}: not a parquet table that can be read ({error})") from error
    except OSError as error:
        if error.errno is not None:  # the system's
            raise
        raise InputError(f"{where}: truncated or damaged parquet ({error})") from error


def check_unpacked(metadata: Any, where: str) -> None:
    """InputError where a group of rows is larger, unpacked, than is read, by what the file says of itself.

    Not asked column by column: pyarrow 26 ends the whole process when a damaged description of one is looked
    at, which a read of the same column only reports.
    """
    with faults(where):
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    if max(sizes, default=0) > GROUP_CAP:
        raise InputError(
            f"{where}: a group of rows has {max(sizes)} bytes, unpacked; at most {GROUP_CAP} are read"
        )


def cells_of(column: Any) -> list[Cell]:
    """The values of an array of arrow; NESTED for lists, structs and bytes."""
    import pyarrow

    kind = column.type
    if not is_plain(kind):
        return [NESTED] * len(column)
    if pyarrow.types.is_dictionary(kind) and is_plain(kind.value_type):
        values = [*cells_of(column.dictionary), None]
        return [values[-1 if place is None else place] for place in column.indices.to_pylist()]
    types = pyarrow.types
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    if not (plain or types.is_string(kind) or types.is_large_string(kind)):
        column = column.cast(pyarrow.string())  # dates and times, decimals
    cells: list[Cell] = column.to_pylist()
    return cells


def is_plain(kind: Any) -> bool:
    """Whether cells of that type of arrow are single values."""
    from pyarrow import types

    if types.is_dictionary(kind):
        return is_plain(kind.value_type)
    other = types.is_null(kind) or types.is_decimal(kind) or types.is_date(kind) or types.is_timestamp(kind)
    return (
        types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_string(kind)
        or _is_wide(kind)
        or types.is_time(kind)
        or other
    )


def _is_wide(kind: Any) -> bool:
    from pyarrow import types

    return bool(types.is_large_string(kind))
