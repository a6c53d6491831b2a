"""What names several tars, and what they are called in an index."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffbase.cli import InputError
from shards.packing.flags import parser, source_of
from shards.sources.tars.places import names, passed_over, places, splits
from shards.sources.tars.samples import plain_key


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://h/{8..11}.tar", ["8", "9", "10", "11"]),
        ("http://h/{008..011}.tar", ["008", "009", "010", "011"]),
        ("http://h/{a,b}{1..2}.tar", ["a1", "a2", "b1", "b2"]),
        ("http://h/{3..3}.tar", ["3"]),
    ],
)
def test_patterns(text: str, found: list[str]) -> None:
    assert places([text]) == tuple(f"http://h/{name}.tar" for name in found)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("http://h/{3..1}.tar", "counts backwards"),
        ("http://h/{x}.tar", "is no pattern"),
        ("http://h/{0..999999999}.tar", "more than 1048576 tars"),
        ("http://h/" + "{0..999}" * 9, "more than 1048576 tars"),
        ("pipe:ls", "refused"),
        ("none.tar", "no such file"),
    ],
)
def test_what_names_no_tars(text: str, told: str) -> None:
    with pytest.raises(InputError, match=told):
        places([text])


def test_a_folder_gives_its_tars_in_natural_order(tmp_path: Path) -> None:
    for name in ("10.tar", "9.tar", "8.tgz", ".7.tar", "stats.json"):
        (tmp_path / name).touch()
    found = [place for place in places([str(tmp_path)]) if isinstance(place, Path)]
    assert [path.name for path in found] == ["8.tgz", "9.tar", "10.tar"]
    assert places([str(tmp_path), str(tmp_path / "9.tar")]) == tuple(found)  # each once
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no tars in it"):
        places([str(tmp_path / "empty")])


def test_what_lies_beside_the_tars_is_told(tmp_path: Path) -> None:
    for name in ("a.tar", "train/b.tar", "train/notes.txt", "part2/c.tar", "stats.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    told = "3 other files or folders passed over (notes.txt, part2/, stats.json)"
    assert passed_over([str(tmp_path)]) == (told,)
    assert passed_over([f"{tmp_path}/{{part2,train}}"]) == ("1 other file or folder passed over (notes.txt)",)
    assert passed_over([str(tmp_path / "a.tar"), "http://h/x.tar"]) == ()


def test_a_path_with_braces_is_taken_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "{1..2}.tar").touch()
    assert places([str(tmp_path / "{1..2}.tar")]) == (tmp_path / "{1..2}.tar",)


def test_a_pattern_may_be_longer_than_a_name(tmp_path: Path) -> None:
    words = [f"{'x' * 20}{n}" for n in range(20)]
    for word in words:
        (tmp_path / f"{word}.tar").touch()
    pattern = f"{tmp_path}/{{{','.join(words)}}}.tar"
    assert places([pattern]) == tuple(tmp_path / f"{word}.tar" for word in words)
    assert source_of(parser("").parse_args([pattern, "--out", "x"])) == (pattern,)


def test_names_are_plain_and_no_two_alike() -> None:
    assert names([Path("/a/x.tar"), Path("/b/y.tar")]) == ["x.tar", "y.tar"]
    found = names([Path("/a/x.tar"), Path("/b/x.tar"), "http://h/a/x.tar?sign=1"][:2])
    assert len(set(found)) == 2 and all(name.startswith(("a-x-", "b-x-")) for name in found)
    assert names([Path("/a/my photos.tar"), Path("/a/\u043a.tar")]) == ["my photos.tar", "\u043a.tar"]
    assert all(
        name.isascii() and len(name) < 100 for name in names([Path("/a/x\x01.tar"), Path("/" + "x" * 240)])
    )
    (odd,) = names([Path("/a/.ключ: x.tar")])
    assert odd.isascii() and not odd.startswith(".") and "/" not in odd
    with pytest.raises(InputError, match="given twice"):
        names(["http://h/x.tar?a", "http://h/x.tar?b"])


def test_keys_are_plain() -> None:
    assert plain_key("a-b_1") == "a-b_1"
    assert plain_key("a/b") != plain_key("a-b") != plain_key("a.b")
    for key in ("_x", "-", "ключ", "a" * 81, "", "\udcff"):
        plain = plain_key(key)
        assert plain.isascii() and 0 < len(plain) <= 80 and plain[0] not in "_.-"
    assert plain_key("x", "a.tar") != plain_key("x", "b.tar")


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (["a-train-0.tar", "a-val-0.tar", "test/1.tar"], ["train", "val", "test"]),
        (["http://h/train/0.tar?x", "http://h/dev/0.tar", "x.tar"], ["train", "val", "train"]),
        (["train-0.tar", "TEST_0.tar"], ["train", "test"]),
        (["dev/0.tar", "dev/1.tar"], [None, None]),  # nothing is called train
        (["trained-0.tar", "tests.tar"], [None, None]),
        (["train_val.tar", "train.tar"], ["train", "train"]),
    ],
)
def test_splits_that_names_tell(found: list[str], told: list[str | None]) -> None:
    assert splits([Path(place) if ":" not in place else place for place in found]) == told
