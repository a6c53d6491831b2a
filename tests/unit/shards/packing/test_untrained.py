"""Variants without a training image are told when a folder is packed and when it is checked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shards import pack, verify
from tests.support.tiny_set import TINY, Command, png_of

TABLE = (
    "file_name,split,hair\n0.png,train,black\n1.png,train,\n2.png,val,red\n"
    "3.png,test,blond\n4.png,test,black\n"
)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "set").mkdir()
    for number in range(5):
        (tmp_path / "set" / f"{number}.png").write_bytes(png_of(str(number)))
    (tmp_path / "set" / "metadata.csv").write_text(TABLE)
    return tmp_path / "set"


def test_pack_and_verify_warn(source: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "out"
    line = "warning: hair: no training image of blond, red (2 of 3 variants)"
    for _ in range(2):  # the second one finds nothing to do
        code, told, err = command(pack.main, source, "--kind", "imagefolder", "--out", out, *TINY)
        assert (code, err) == (0, "") and told.count(f"{out}: {line}\n") == 1
    code, told, err = command(verify.main, out, "--jobs", 1)
    assert (code, err) == (
        0,
        "",
    ) and told == f"{out}: {line}\n{out}: sound (2 train, 1 val, 2 test samples)\n"
    _, told, _ = command(verify.main, out, "--jobs", 1, "--json")
    assert json.loads(told)["warnings"] == [line]


def test_no_word_of_a_folder_that_has_all(source: Path, tmp_path: Path, command: Command) -> None:
    (source / "metadata.csv").write_text(TABLE.replace("val", "train").replace("test", "train"))
    code, told, _ = command(
        pack.main, source, "--kind", "imagefolder", "--out", tmp_path / "out", "--val", 0, *TINY
    )
    assert code == 0 and "warning" not in told
