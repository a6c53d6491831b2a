"""Columns become attributes: which values are variants, how they are called, and what is left out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.schema import UNKNOWN
from shards.sources.labels.columns import NESTED, STRINGS_CAP, Column, LeftOut


def labels(cells: Sequence[object], named: bool = False, bins: int | None = None) -> list[str]:
    """The name of each cell's variant."""
    column = Column("x", named)
    column.add(cells)
    attribute, variants = column.attribute(range(len(cells)), [True] * len(cells), bins)
    assert len(set(attribute.names)) == attribute.variants
    return [attribute.said(variant) for variant in variants]


def names(cells: Sequence[object], named: bool = False, bins: int | None = None) -> tuple[str, ...]:
    column = Column("x", named)
    column.add(cells)
    return column.attribute(range(len(cells)), [True] * len(cells), bins)[0].names


@pytest.mark.parametrize(
    ("cells", "variants"),
    [
        (["b", "a", "b"], ["a", "b"]),
        (["x10", "x9", "X1"], ["X1", "x9", "x10"]),
        ([True, False], ["no", "yes"]),
        (["TRUE", "False", "true"], ["no", "yes"]),
        (["1", "-1"], ["no", "yes"]),
        ([1, 0, None], ["no", "yes"]),
        ([1.0, 0.0, float("nan")], ["no", "yes"]),
        (["0", "1", "2"], ["0", "1", "2"]),
        (["10", "9", " 1 ", "1.0"], ["1", "9", "10"]),
        ([0.5, 2, "-1e1"], ["-10", "0.5", "2"]),
        (["007", "7"], ["007", "7"]),
        (["кошка", "猫", ""], ["кошка", "猫"]),
        (["dark\xa0red", "dark  red", "two\nlines", "\u200b"], ["\\u200b", "dark red", "two lines"]),
    ],
)
def test_variants(cells: list[object], variants: list[str]) -> None:
    assert sorted(names(cells)) == sorted(variants) and list(names(cells)) == variants


def test_booleans_and_missing() -> None:
    assert labels(["-1", "1", "", "NaN", "null", "  ", "1"]) == ["no", "yes", *["unknown"] * 4, "yes"]
    assert labels(["NA", "none", "a"]) == ["NA", "none", "a"]  # words, as far as anybody knows


def test_true_is_not_1() -> None:
    """In JSON a column may have both, in any order."""
    for cells in ([True, 1, 2], [1, True, 2], [2, 1.0, True]):
        assert labels(cells) == ["true" if cell is True else str(int(cell)) for cell in cells]


def test_padding_makes_no_room_for_more_values() -> None:
    column = Column("x")
    for first in range(0, 20_000, 1000):
        column.add([f"x{n % 5000}" + " " * 300 for n in range(first, first + 1000)])
    with pytest.raises(LeftOut, match="more than 4096 different values"):
        column.attribute(range(20_000), [True] * 20_000, None)


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        (["", None], "no value at all"),
        (["a", "a", ""], r"one value only \(a\)"),
        ([NESTED, "a"], "lists, structs or bytes"),
        (["a", "b" * 256], "free text"),
        ([f"name {n}" for n in range(40)], "nearly every sample"),
        ([n % 70 for n in range(1000)], "numbers of many values; --bins N"),
        ([n / 7 for n in range(40)], "numbers of many values; --bins N"),
        ([f"x{n % 5000}" for n in range(20_000)], "more than 4096 different values"),
        ([n if n < 9000 else "x" for n in range(9999)], "more than 4096 different values"),
    ],
)
def test_left_out(cells: list[object], why: str) -> None:
    with pytest.raises(LeftOut, match=why):
        labels(cells)


def test_a_named_column_is_meant() -> None:
    assert len(names([f"x{n}" for n in range(5000)], named=True)) == 5000
    assert names([n % 70 for n in range(1000)], named=True)[69] == "69"
    assert names(["a"], named=True) == ("a",)
    with pytest.raises(LeftOut, match="--bins"):
        labels([n / 7 for n in range(1000)], named=True)


numbers = st.integers(-1000, 1000) | st.floats(-1e6, 1e6)


@given(st.lists(numbers | st.none(), min_size=20, max_size=200), st.integers(2, 9), st.booleans())
def test_quantiles_are_numpys(cells: list[int | float | None], bins: int, text: bool) -> None:
    """Equal numbers have one variant, greater ones a greater one, and quantiles are evenly full."""
    given = [None if c is None else str(c) if text else c for c in cells]
    column = Column("x")
    column.add(given)
    try:
        attribute, found = column.attribute(range(len(cells)), [True] * len(cells), bins)
    except LeftOut:
        return
    pairs = sorted((float(c), v) for c, v in zip(cells, found, strict=True) if c is not None)
    assert all((c is None) == (v == UNKNOWN) for c, v in zip(cells, found, strict=True))
    assert [v for _, v in pairs] == sorted(v for _, v in pairs)
    assert len({c for c, _ in pairs}) >= len({v for _, v in pairs}) == attribute.variants
    if column.binned:
        values = np.array([c for c, _ in pairs])
        edges = np.quantile(values, [n / bins for n in range(1, bins)], method="inverted_cdf")
        counts = np.bincount([v for _, v in pairs])
        assert attribute.variants <= bins and counts.min() > 0
        if len(set(values)) == len(values):  # no ties: as even as can be
            assert counts.max() - counts.min() <= 1 and len(edges) + 1 == attribute.variants


def test_quantiles_of_training_samples_only() -> None:
    column = Column("x")
    column.add([*range(100), 1000, -5])
    attribute, found = column.attribute(range(102), [True] * 100 + [False] * 2, 4)
    assert attribute.names == ("0 to 24", "25 to 49", "50 to 74", "75 to 99")
    assert found[-2:].tolist() == [3, 0] and [found[n] for n in (0, 24, 25, 99)] == [0, 0, 1, 3]


def test_more_numbers_than_are_kept_one_by_one() -> None:
    cells = [n * 0.5 for n in range(3 * STRINGS_CAP)]
    column = Column("x")
    for first in range(0, len(cells), 1000):
        column.add(cells[first : first + 1000], first)
    column.add([None, "7"], len(cells) + 3)  # three rows of a table without the column
    rows = range(len(cells) + 5)
    attribute, found = column.attribute(rows, [True] * len(rows), 2)
    assert attribute.names == ("0 to 3071.5", "3071.5 to 6143.5")
    assert found[-5:].tolist() == [UNKNOWN] * 4 + [0]
    assert found.tolist().count(1) == len(cells) // 2 + 1


def test_equal_quantiles_are_one() -> None:
    cells = [0] * 90 + list(range(1, 101))
    assert names(cells, bins=4) == ("0 to 5", "6 to 52", "53 to 100")


def test_edges_that_are_whole_by_chance() -> None:
    """4.5 is not between 0 and 4."""
    cells = [n * 0.5 for n in range(41)]
    assert names(cells, bins=4) == ("0 to 5", "5 to 10", "10 to 15", "15 to 20")
    column = Column("x")
    column.add([*range(100), 24.5])  # of a sample that is not trained on
    attribute, _ = column.attribute(range(101), [True] * 100 + [False], 4)
    assert attribute.names == ("0 to 25", "25 to 50", "50 to 75", "75 to 99")


def test_long_numbers_keep_their_digits() -> None:
    cells = [1_000_000 + n * 0.001 for n in range(100)]
    assert names(cells, bins=2) == ("1000000 to 1000000.05", "1000000.05 to 1000000.099")
