"""Texts held as bytes are those that were given; keys that are there more than once are found."""

from __future__ import annotations

import string
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from shards.sources.tars.collection import _several
from shards.sources.tars.texts import Texts

KEYS = st.lists(st.text(string.ascii_letters + string.digits + "_-", max_size=8), max_size=20)


@given(KEYS, KEYS)
def test_they_are_as_a_list(given: list[str], other: list[str]) -> None:
    texts = Texts(given)
    assert list(texts) == given and len(texts) == len(given)
    assert [texts[at] for at in range(len(given))] == given
    assert [texts[at] for at in range(-len(given), 0)] == given
    assert texts[2:7:2] == given[2:7:2] and texts[::-1] == given[::-1]
    assert (texts == Texts(other)) == (given == other)


@given(st.lists(KEYS, max_size=6))
def test_what_is_there_more_than_once(tars: list[list[str]]) -> None:
    wanted = Counter(key for some in tars for key in some)
    assert _several([Texts(some) for some in tars]) == {key: n for key, n in wanted.items() if n > 1}
