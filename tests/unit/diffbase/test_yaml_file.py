"""YAML is a tree of plain values of bounded size, or one line that says why not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from diffbase.formats import yaml_file

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(8)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join(['*' + chr(97 + n)] * 9)}]}}\n" for n in range(8)
)
WRONG = {
    "a: !!int abc": "line 1, column 4: 'abc' is no int",
    "a: !!bool abc": "'abc' is no bool",
    "a: !!float x": "'x' is no float",
    "a: !!timestamp abc": "tag !!timestamp is not read here",
    "a: !!binary x": "tag !!binary is not read here",
    "!!set {a}": "tag !!set is not read here",
    "!!python/object/apply:os.system [id]": "tag !!python/object/apply:os.system is not read here",
    "[" * 3000: "nested more than 50 deep",
    "- " * 3000: "nested more than 50 deep",
    "{a: " * 3000: "nested more than 50 deep",
    "9" * 5000: "a number of 5000 digits",
    "0x" + "f" * 1000: "a number of more than 1024 bits",
    "1:" * 500 + "1": "a number of more than 1024 bits",
    BOMB: "more than 50000 values",
    MERGES: "more than 50000 values",
    "&a [*a]": "*a lies in itself",
    "a: 1\nb: 2\na: 3": "line 3, column 1: 'a' is given twice",
    "x: {a: 1, 'a': 2}": "'a' is given twice",
    "[1]: 2": "found unhashable key",
    r'"\U00110000"': "not a YAML file",
    r'"\Uffffffff"': "not a YAML file",
    "%YAML 1." + "1" * 5000 + "\n---\nx": "not a YAML file",
    "a: \0": "special characters are not allowed",
    "- x\n" * 200_000: "more than 524288 bytes",
}


@pytest.mark.parametrize("text", WRONG, ids=lambda text: repr(text[:20]))
def test_what_is_no_tree_of_ours_is_a_short_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    start = time.monotonic()
    with pytest.raises(InputError) as error:
        yaml_file.read(path, "no such file")
    assert time.monotonic() - start < 10
    words = str(error.value)
    assert WRONG[text] in words and words.startswith(str(path)) and len(words) < 600 and words.isprintable()


def test_a_date_is_text() -> None:
    assert yaml_file.parse(b"a: 2001-13-45\nb: 2001-10-10\nc: =", "x") == {
        "a": "2001-13-45", "b": "2001-10-10", "c": "=",
    }  # fmt: skip


def test_aliases_and_merges_are_read() -> None:
    tree = yaml_file.parse(b"a: &a {x: 1, y: 2}\nb: {<<: *a, y: 3}\nc: *a\nd: [*a, *a]", "x")
    assert tree["b"] == {"x": 1, "y": 3} and tree["c"] == tree["d"][1] == {"x": 1, "y": 2}


def test_of_merges_the_own_key_wins_then_the_first_merged() -> None:
    text = b"a: &a {x: 1, y: 1}\nb: &b {x: 2, z: 2}\nc: {<<: [*a, *b], z: 3}\nd: {<<: [*b, *a]}"
    tree = yaml_file.parse(text, "x")
    assert tree["c"] == {"x": 1, "y": 1, "z": 3} and tree["d"] == {"x": 2, "y": 1, "z": 2}


def test_a_merge_within_a_merge_repeats_no_key() -> None:
    text = b"z: &z {x: 1}\na: {<<: &b {<<: *z, x: 2}}\nc: *b"
    assert yaml_file.parse(text, "x") == {"z": {"x": 1}, "a": {"x": 2}, "c": {"x": 2}}


LEAVES = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(LEAVES, lambda below: st.lists(below) | st.dictionaries(st.text(), below), max_leaves=20)


@given(tree=TREES)
def test_what_yaml_writes_of_a_plain_tree_is_read_back(tree: object) -> None:
    assert yaml_file.parse(yaml.safe_dump(tree).encode(), "x") == tree


@given(data=st.binary(max_size=60) | st.text("[]{}&*!:-?|> \n'\"a1<=,#%@", max_size=60).map(str.encode))
def test_any_bytes_are_a_tree_or_an_input_error(data: bytes) -> None:
    try:
        yaml_file.parse(data, "x")
    except InputError as error:
        assert str(error).isprintable() and len(str(error)) < 600
