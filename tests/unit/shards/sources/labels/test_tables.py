"""Tables as people write them: every form gives the rows that went in, and nonsense gives one line."""

from __future__ import annotations

import csv
import io
import json

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from diffbase.cli import InputError
from shards.sources.labels import tables
from shards.sources.labels.columns import NESTED, text_of
from shards.sources.labels.tables import blocks

texts = st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=12)
one_spaced = texts.map(lambda text: " ".join(text.split()))
headers = st.lists(one_spaced.filter(bool), min_size=2, max_size=5, unique=True)


def rows_of(data: bytes) -> list[dict[str, object]]:
    """Row by row, unknown cells left out."""
    found = []
    for block in blocks(io.BytesIO(data), "table"):
        for cells in zip(*block.values(), strict=True):
            row = dict(zip(block, map(text_of, cells), strict=True))
            found.append({name: text for name, text in row.items() if text is not None})
    return found


def told(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    wanted = [{name: text_of(cell) for name, cell in row.items()} for row in rows]
    return [{name: text for name, text in row.items() if text is not None} for row in wanted]


@st.composite
def filled(draw: st.DrawFn) -> tuple[list[str], list[dict[str, object]]]:
    """Names and rows; the first column has a value in every row, as one with names of images has."""
    names = draw(headers)
    cells = st.one_of(st.none(), texts)
    count = draw(st.integers(1, 6))
    return names, [
        {name: f"image {n}" if place == 0 else draw(cells) for place, name in enumerate(names)}
        for n in range(count)
    ]


@settings(max_examples=150, deadline=None)
@given(
    filled(),
    st.sampled_from(",;\t|"),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    st.sampled_from(["", "\n", "   \r\n", "\n\n"]),
)
def test_csv(
    table: tuple[list[str], list[dict[str, object]]], delimiter: str, end: str, encoding: str, rest: str
) -> None:
    names, rows = table
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator=end, quoting=csv.QUOTE_ALL)
    writer.writerows([names, *([row[name] for name in names] for row in rows)])
    assert rows_of((stream.getvalue() + rest).encode(encoding)) == told(rows)


@settings(max_examples=100, deadline=None)
@given(filled(), st.booleans())
def test_jsonl(table: tuple[list[str], list[dict[str, object]]], ascii_only: bool) -> None:
    _, rows = table
    lines = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    assert rows_of(f"\ufeff{lines}\n \n".encode()) == told(rows)


@settings(max_examples=50, deadline=None)
@given(filled(), st.integers(1, 3))
def test_parquet(table: tuple[list[str], list[dict[str, object]]], group: int) -> None:
    names, rows = table
    stream = io.BytesIO()
    columns = {name: pa.array([row[name] for row in rows], pa.string()) for name in names}
    parquet.write_table(pa.table(columns), stream, row_group_size=group)
    assert rows_of(stream.getvalue()) == told(rows)


@pytest.mark.parametrize("names", [("a b", "a  b"), ("", " ")])
def test_columns_of_parquet_that_are_shown_alike(names: tuple[str, str]) -> None:
    stream = io.BytesIO()
    parquet.write_table(pa.table({name: [1, 2] for name in names}), stream)
    with pytest.raises(InputError, match=f"table: two columns have the name '{names[0]}'"):
        rows_of(stream.getvalue())


def test_kinds_of_parquet() -> None:
    """Pandas' categories, dates and decimals too; lists, structs and bytes are told apart, not read."""
    import datetime
    import decimal

    day = datetime.date(2026, 11, 26)
    stream = io.BytesIO()
    columns = {
        "text": pa.array(["a", None]).dictionary_encode(),
        "large": pa.array(["b", ""], pa.large_string()),
        "whole": pa.array([1, None], pa.int8()),
        "half": pa.array([0.5, float("nan")], pa.float32()),
        "yes": pa.array([True, False]),
        "day": pa.array([day, None]),
        "time": pa.array([None, datetime.datetime(2026, 1, 2, 3, 4, 5)]),
        "price": pa.array([decimal.Decimal("1.50"), None]),
        "null": pa.array([None, None]),
        "list": pa.array([[1], []]),
        "image": pa.array([{"bytes": b"x"}, None]),
        "raw": pa.array([b"x", None]),
    }
    parquet.write_table(pa.table(columns), stream)
    (block,) = blocks(io.BytesIO(stream.getvalue()), "table")
    assert {n: c[0] for n, c in block.items() if c[0] not in (None, NESTED)} == {
        **{"text": "a", "large": "b", "whole": 1, "half": 0.5, "yes": True},
        **{"day": "2026-11-26", "price": "1.50"},
    }
    assert str(block["time"][1]).startswith("2026-01-02 03:04:05")
    assert [name for name, cells in block.items() if cells[0] is NESTED] == ["list", "image", "raw"]


def test_celeba_list() -> None:
    text = "2\n5_o_Clock_Shadow Bald \n000001.jpg -1  1 \n000002.jpg  1 -1\n"
    assert rows_of(text.encode()) == [
        {"image": "000001.jpg", "5_o_Clock_Shadow": "-1", "Bald": "1"},
        {"image": "000002.jpg", "5_o_Clock_Shadow": "1", "Bald": "-1"},
    ]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "a table without rows"),
        (b"a,b\n", "a table without rows"),
        (b"a,b\n1,2\n1,2,3\n", "line 3: 3 fields; its first line has 2"),
        (b"a,b\n1\n", "line 2: 1 fields; its first line has 2"),
        (b"a,a\n1,2\n", "two columns have the name 'a'"),
        (b'a,b\n1,"2', "not a CSV"),
        (b"a,b\n1,\xff\n", "not a table in UTF-8"),
        (b"a,b\n1," + b"x" * 200_000, "not a CSV"),
        (b"a" * 2_000_000, "a line of more than 1048576 characters"),
        (b",".join(b"%d" % n for n in range(2000)) + b"\n1\n", "more than 1024 columns"),
        (b"3\na b\n1.jpg 1 1\n", "1 rows; its first line says 3"),
        (b"2\na b\n1.jpg 1 1\n2.jpg 1\n", "line 4: 2 fields instead of 3"),
        (b'{"a": 1}\n{"a"', "line 2: not JSON"),
        (b'{"a": 1}\n[1]', "line 2: not an object"),
        (b'{"a": 1}\n{"a b": 1, "a  b": 2}', "line 2: two columns have the name 'a b'"),
        (b'{"a": ' + b"[" * 100_000, "line 1: not JSON"),
        (b'{"a": ' + b"9" * 100_000 + b"}", "line 1: not JSON"),
        (b"PAR1" + b"x" * 100, "parquet"),
        (b"\x1f\x8b\x08\x00\xff", "not a table in UTF-8"),
    ],
)
def test_no_table_is_one_line(data: bytes, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as told:
        rows_of(data)
    assert str(told.value).startswith("table")


def test_a_trailing_delimiter_is_no_column() -> None:
    assert rows_of(b"a;b;\n1;2;\n;;\n3;4;\n") == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_rows_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_CAP", 5000)
    with pytest.raises(InputError, match="more than 5000 rows"):
        rows_of(b"a,b\n" + b"1,2\n" * 9000)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"PAR1", b'{"a":1}\n', b"\xff\xfe", b"1\na b\n", b"a,b\n"])
)
def test_any_bytes(data: bytes, head: bytes) -> None:
    """Rows, or one error."""
    try:
        rows_of(head + data)
    except InputError as error:
        assert "\n" not in str(error)


def test_damaged_parquet_is_one_line() -> None:
    stream = io.BytesIO()
    parquet.write_table(pa.table({"a": [f"image {n}" for n in range(50)], "b": list(range(50))}), stream)
    whole = stream.getvalue()
    for place in range(0, len(whole), 7):
        for bad in (whole[:place], whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]):
            try:
                rows_of(bad)
            except InputError as error:
                assert "\n" not in str(error)


def test_large_parquet_is_refused_by_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    from shards.sources.labels import parquet as module

    stream = io.BytesIO()
    parquet.write_table(
        pa.table({"a": ["x" * 5000] * 3, "b": [[1] * 9000] * 3}), stream, use_dictionary=False
    )
    assert len(rows_of(stream.getvalue())) == 3
    monkeypatch.setattr(module, "GROUP_CAP", 10_000)
    with pytest.raises(InputError, match=r"a group of rows has [0-9]+ bytes, unpacked; at most 10000"):
        rows_of(stream.getvalue())
