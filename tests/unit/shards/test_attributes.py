"""The Cartoon Set schema and its CSV form."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.schema import CARTOON_SET, one_hot_offsets, one_hot_width
from shards.sources.cartoon_csv import format_csv, parse_csv, parse_csv_text

GOOD = format_csv({a.name: 0 for a in CARTOON_SET})
labels = st.fixed_dictionaries({a.name: st.integers(0, a.variants - 1) for a in CARTOON_SET})


def test_schema() -> None:
    assert len(CARTOON_SET) == 18
    assert one_hot_width(CARTOON_SET) == 217
    assert one_hot_offsets(CARTOON_SET)[:4] == [0, 3, 5, 7]
    assert one_hot_offsets(CARTOON_SET)[-1] + CARTOON_SET[-1].variants == 217


@given(labels, st.booleans(), st.sampled_from(["\n", "\r\n"]), st.integers())
def test_round_trip(given_labels: dict[str, int], spaces: bool, newline: str, seed: int) -> None:
    lines = format_csv(given_labels).splitlines()
    random.Random(seed).shuffle(lines)
    text = newline.join(lines) + newline
    parsed = parse_csv_text(text if spaces else text.replace(", ", ","), "x.csv")
    assert parsed == given_labels
    assert list(parsed) == [a.name for a in CARTOON_SET]


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (
            '"eye_angle", 0, 3',
            '"eye_angel", 0, 3',
            "line 1: unknown attribute 'eye_angel'; allowed: eye_angle",
        ),
        ('"eye_angle", 0, 3', '"eye_angle", 3, 3', "line 1: eye_angle is 3; allowed: 0 to 2"),
        ('"eye_angle", 0, 3', '"eye_angle", 0, 4', "eye_angle has 3 variants, the file says 4"),
        ('"eye_angle", 0, 3', '"eye_angle", -1, 3', "expected a whole number, got '-1'"),
        ('"eye_angle", 0, 3', '"eye_angle", 1_0, 3', "expected a whole number"),
        ('"eye_angle", 0, 3', '"eye_angle", 0', "got 2 fields"),
        ('"eye_angle", 0, 3', '"eye_angle, 0, 3', "not a CSV|expected|fields"),
        ('"eye_angle", 0, 3\n', "", "attribute missing: eye_angle"),
        ('"eye_lid", 0, 2', '"eye_angle", 0, 3', "line 3: attribute 'eye_angle' appears twice"),
    ],
)
def test_bad_csv(old: str, new: str, told: str) -> None:
    assert old in GOOD
    with pytest.raises(InputError, match=told):
        parse_csv_text(GOOD.replace(old, new), "x.csv")


def test_bad_files(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"x\.csv: not a text file"):
        parse_csv(path)
    path.write_text("")
    with pytest.raises(InputError, match="attribute missing"):
        parse_csv(path)


@given(st.text(max_size=60), st.integers(0, len(GOOD)), st.integers(0, 40))
def test_any_text_is_told_or_valid(noise: str, place: int, cut: int) -> None:
    try:
        found = parse_csv_text(GOOD[:place] + noise + GOOD[place + cut :], "x.csv")
    except InputError:
        return
    assert [(a.name, 0 <= found[a.name] < a.variants) for a in CARTOON_SET] == [
        (a.name, True) for a in CARTOON_SET
    ]


def test_loads_without_torch_and_numpy() -> None:
    code = "import shards.pack, shards.sources, sys; print({'torch', 'numpy', 'PIL'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
