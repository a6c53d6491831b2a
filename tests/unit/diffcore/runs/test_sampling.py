"""Labels by name, by number, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffcore.runs.run_folder import AttributeRecord
from diffcore.runs.sampling import check_labels, parse_wanted, spoken, told, variant_of
from shards.schema import UNKNOWN, Attribute

HAIR = Attribute("hair color", 4, ("black", "dark_blond", "Blond", "hell=grün"))
PLAIN = Attribute("lid=open", 2)
DIGITS = Attribute("class", 3, ("2", "10", "x"))
SCHEMA = (HAIR, PLAIN, DIGITS)


@pytest.mark.parametrize(
    ("setting", "wanted"),
    [
        ("hair color=black", {"hair color": 0}),
        ("hair color=Dark blond", {"hair color": 1}),
        ("hair color=blond", {"hair color": 2}),
        ("hair color=hell=grün", {"hair color": 3}),
        ("hair color=3", {"hair color": 3}),
        ("hair color=unknown", {"hair color": UNKNOWN}),
        ("lid=open=1", {"lid=open": 1}),
        ("class=2", {"class": 0}),  # a name counts before a number
        ("class=10", {"class": 1}),
        ("class=0", {"class": 0}),
        ("Hair-Color=BLOND", {"hair color": 2}),
        ("Lid=Open=0", {"lid=open": 0}),
        ("hair color=hell=gru\u0308n", {"hair color": 3}),  # the same letter in two characters
    ],
)
def test_a_variant_by_name_or_number(setting: str, wanted: dict[str, int]) -> None:
    assert parse_wanted([setting], SCHEMA) == wanted


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        (
            "hair color=blnd",
            "no variant 'blnd'; allowed: 0 to 3, or black, dark_blond, Blond, .*; nearest: Blond",
        ),
        ("hair colour=1", "unknown attribute 'hair colour'; allowed: .*; nearest: hair color"),
        ("hair=1", "unknown attribute .hair.; allowed: .*; nearest: hair color"),
        ("hair color=4", "no variant '4'; allowed: 0 to 3, or "),
        ("lid=open=open", "must be a whole number, 0 to 1, not 'open'"),
        ("class", "class has no variant ''"),
        ("=", "unknown attribute ''; allowed: hair color, lid=open, class"),
    ],
)
def test_a_wrong_one_is_told_what_is_allowed(setting: str, told: str) -> None:
    with pytest.raises(InputError, match=f"--set {setting}: .*{told}"):
        parse_wanted([setting], SCHEMA)


def test_names_that_are_alike_are_told_apart() -> None:
    both = Attribute("a_b", 2, ("x y", "x_y"))
    assert [variant_of(both, name) for name in both.names] == [0, 1]
    with pytest.raises(InputError, match="a_b: variant 'x-y' may be any of x y, x_y; allowed: one of them"):
        variant_of(both, "x-y")
    two = [Attribute("a_b", 2), Attribute("a b", 2)]
    for wrong in (lambda: check_labels({"a-b": 1}, two), lambda: parse_wanted(["a-b=1"], two)):
        with pytest.raises(InputError, match="attribute 'a-b' may be any of a_b, a b"):
            wrong()
    with pytest.raises(InputError, match="'a_b' is given twice"):
        check_labels({"a_b": 0, "a b": 1}, [both])
    with pytest.raises(InputError, match="unknown attribute 5"):
        check_labels({5: 0}, [both])  # type: ignore[dict-item]


@pytest.mark.parametrize(
    ("names", "value", "wanted"),
    [
        (("-2", "0", "7"), "2", 2),  # by number, never the one with another sign
        (("-2", "0", "7"), "-2", 0),
        (("-10", "0", "5"), "10", None),
        (("A-", "B+", "0"), "A", None),
        (("A-", "B+", "0"), "a-", 0),
        (("10 to -5", "1"), "10 to 5", None),
        (("10 to -5", "1"), "10_to -5", 0),
        (("-", "yes"), "", None),
        ((" ", "yes"), "", None),
        (("-", "yes"), "_", None),
        (("1-2", "3"), "1_2", 0),
        (("x", "2", "1"), "2", 1),  # to the letter
    ],
)
def test_signs_tell_names_apart(names: tuple[str, ...], value: str, wanted: int | None) -> None:
    attribute = Attribute("t", len(names), names)
    ways = (
        lambda: check_labels({"t": value}, [attribute]),
        lambda: parse_wanted([f"t={value}"], [attribute]),
    )
    for way in ways:
        if wanted is None:
            with pytest.raises(InputError, match=f"t has no variant '{value}'; allowed: 0 to "):
                way()
        else:
            assert way() == {"t": wanted}


def test_the_longest_attribute_that_is_known_is_meant() -> None:
    both = [Attribute("a", 3), Attribute("a=b", 3)]
    assert parse_wanted(["a=b=1", "a=2"], both) == {"a=b": 1, "a": 2}


def test_long_lists_are_cut() -> None:
    many = Attribute("a", 500, tuple(f"name{i}" for i in range(500)))
    with pytest.raises(InputError) as error:
        variant_of(many, "nam499")
    assert "(500 in all)" in str(error.value) and "nearest: name499" in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize("value", [1.0, None, "true", b"1", [1], -1])
def test_what_is_neither(value: object) -> None:
    with pytest.raises(InputError):
        check_labels({"lid=open": value}, SCHEMA)


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True))
def test_every_name_leads_back_to_its_number(names: list[str]) -> None:
    attribute = Attribute("a", len(names), tuple(names))
    assert [variant_of(attribute, name) for name in names] == list(range(len(names)))
    assert [variant_of(attribute, attribute.said(v)) for v in range(len(names))] == list(range(len(names)))
    (record,) = AttributeRecord.of([attribute])
    assert AttributeRecord.model_validate(record).attribute.names == attribute.names


def test_told_and_spoken() -> None:
    labels = [2, 1, UNKNOWN]
    assert told(SCHEMA, labels) == {
        "attributes": {"hair color": 2, "lid=open": 1, "class": UNKNOWN},
        "names": {"hair color": "Blond", "class": "unknown"},
    }
    assert spoken(SCHEMA, labels) == "hair color Blond, lid=open 1, class unknown"
    assert told((), []) == {"attributes": {}}


def test_a_record_without_names_is_read_and_a_wrong_one_is_not() -> None:
    assert AttributeRecord.model_validate({"name": "a", "variants": 2}).attribute == Attribute("a", 2)
    with pytest.raises(ValueError, match="one for each variant"):
        AttributeRecord.model_validate({"name": "a", "variants": 2, "names": ["x"]})
