"""Keys that appear twice are found without a set of all keys."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.checking.doubles import mark, maybe_twice
from shards.table import Split
from shards.tables.rows import sample_dtype

KEY = st.from_regex(r"[a-c0-1]{1,12}", fullmatch=True)


def split_of(keys: list[str], width: int) -> Split:
    table = np.zeros(len(keys), sample_dtype(width, ()))
    table["key"] = [key.encode() for key in keys]
    shards = [SimpleNamespace(count=len(keys), bytes=1)] if keys else []
    return Split.of("x", shards, table)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(
    a=st.lists(KEY, max_size=30), b=st.lists(KEY, max_size=30), widths=st.tuples(*[st.integers(12, 40)] * 2)
)
def test_all_doubles_are_among_them(a: list[str], b: list[str], widths: tuple[int, int]) -> None:
    """Also over splits whose tables have other widths of keys."""
    index: Any = SimpleNamespace(splits={"a": split_of(a, widths[0]), "b": split_of(b, widths[1])})
    twice = {key for key, count in Counter(a + b).items() if count > 1}
    assert twice <= maybe_twice(index) <= set(a + b)


def test_marks_of_many_keys_differ() -> None:
    """Of a million keys that differ in few characters; chance gives a pair with 3e-8."""
    for form in ("cs%d", "data_batch_%07d", "%d__" + "x" * 20):
        keys = np.array([(form % n).encode() for n in range(1_000_000)])
        assert len(np.unique(mark(keys))) == len(keys)
