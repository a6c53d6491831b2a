"""Parquet tables, block by block; needs pyarrow, the extra ``tables``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO, Any

from diffbase.cli import InputError
from diffbase.extras import extra
from shards.sources.labels.columns import NESTED, Cell, shown

MAGIC = b"PAR1"
UNPACKED_CAP = 4 << 30  # bytes that the columns which are read say they have
GROUP_CAP = 1 << 30  # of them, those of one column in one group of rows
FOOTER_CAP = 64 << 20  # bytes of one text in the description of the columns, and things in one of its lists


def parquet_blocks(stream: IO[bytes], where: str, rows: int) -> Iterator[dict[str, Sequence[Cell]]]:
    """The columns of a parquet file, some ``rows`` at a time. InputError for what is no such file.

    Of lists, structs and bytes nothing is read: NESTED stands there.
    """
    file = open_parquet(stream, where)
    import pyarrow

    schema, metadata = file.schema_arrow, file.metadata
    plain = [field.name for field in schema if _is_plain(field.type)]
    check_unpacked(metadata, plain, where)
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
    """A parquet file of pyarrow's, whose columns' names differ. InputError for what is no such file."""
    with extra("tables", f"{where}, a parquet table,"):
        from pyarrow import parquet
    limits = {"thrift_string_size_limit": FOOTER_CAP, "thrift_container_size_limit": FOOTER_CAP}
    with faults(where):
        file = parquet.ParquetFile(stream, **limits, **options)
        names = file.schema_arrow.names
    if len(set(names)) < len(names):
        raise InputError(f"{where}: two columns have one name")
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


def check_unpacked(metadata: Any, columns: Sequence[str], where: str, most: int = UNPACKED_CAP) -> None:
    """InputError where ``columns`` are larger, unpacked, than is read, by what the file says of itself.

    ``most``: bytes of all groups of rows together.
    """
    wanted, total = set(columns), 0
    with faults(where):
        for group in range(metadata.num_row_groups):
            told = metadata.row_group(group)
            for number in range(told.num_columns):
                chunk = told.column(number)
                if chunk.path_in_schema.split(".")[0] in wanted or chunk.path_in_schema in wanted:
                    total += chunk.total_uncompressed_size
                    if chunk.total_uncompressed_size > GROUP_CAP or total > most:
                        raise InputError(
                            f"{where}: column {chunk.path_in_schema}: too large; at most {GROUP_CAP >> 30} "
                            f"GiB a column and group of rows are read, {most >> 30} GiB in all"
                        )


def cells_of(column: Any) -> list[Cell]:
    """The values of an array of arrow; NESTED for lists, structs and bytes."""
    import pyarrow

    kind = column.type
    if not _is_plain(kind):
        return [NESTED] * len(column)
    if pyarrow.types.is_dictionary(kind) and _is_plain(kind.value_type):
        values = [*cells_of(column.dictionary), None]
        return [values[-1 if place is None else place] for place in column.indices.to_pylist()]
    types = pyarrow.types
    plain = types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_null(kind)
    if not (plain or types.is_string(kind) or types.is_large_string(kind)):
        column = column.cast(pyarrow.string())  # dates and times, decimals
    cells: list[Cell] = column.to_pylist()
    return cells


def _is_plain(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _is_plain(kind.value_type)
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
