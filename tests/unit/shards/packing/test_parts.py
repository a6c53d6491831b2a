"""Parts of a pack, packed anywhere, become the folder that one pack makes: byte for byte, or one line."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.header import FILE
from shards.merge import main as merge_main
from shards.pack import main as pack_main
from shards.packing.bad import OnBad
from shards.packing.packer import pack
from shards.packing.parts import merge as merge_module
from shards.packing.parts.merge import LOCK, merge
from shards.packing.parts.part import FILE as PART
from shards.packing.parts.part import Part
from shards.packing.plan import Settings
from shards.table import Index
from shards.tables import write
from tests.support.foreign_tars import indexed, write_numbers
from tests.support.tiny_set import TINY, Command, contents
from tests.unit.shards.conftest import MakeSource

SKIP = OnBad("skip", 20)


@pytest.fixture(scope="module")
def source(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty avatars, of which three are no images."""
    folder = make_source(tmp_path_factory.mktemp("parts") / "source", range(40))
    for number in (3, 17, 30):
        (folder / f"cs{number}.png").write_bytes(b"none")
    return folder


def packed_parts(source: Path, out: Path, of: int, settings: Settings, on_bad: OnBad = SKIP) -> list[Path]:
    folders = [out / f"part {number}" for number in range(1, of + 1)]
    for number, folder in enumerate(folders, 1):
        pack(source, folder, settings, part=Part(number, of), on_bad=on_bad)
    return folders


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_parts_become_what_one_pack_makes(
    source: Path, tiny: Callable[..., Settings], data: st.DataObject
) -> None:
    size = data.draw(st.integers(3, 20), label="shard size")
    chosen = tiny(shard_size=size, val=data.draw(st.sampled_from([0, 0.0, 0.2, 0.5])))
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        if data.draw(st.booleans(), label="version 4"):
            patch.setattr(write, "HELD_SAMPLES", -1)
        if data.draw(st.booleans(), label="copied"):
            patch.setattr(merge_module.os, "link", no_link)
        pack(source, Path(name) / "whole", chosen, on_bad=SKIP)
        shards = len(list((Path(name) / "whole").glob("*.tar")))
        of = data.draw(st.integers(1, min(6, max(1, shards - 3))), label="parts")
        parts = packed_parts(source, Path(name), of, chosen)
        merged = merge(data.draw(st.permutations(parts)), Path(name) / "merged")
        assert contents(Path(name) / "merged") == contents(Path(name) / "whole")
        assert (merged.shards, merged.skipped) == (shards, 3)
        assert all(list(problems(part)) == [] for part in parts)


def no_link(*_: object) -> None:
    raise OSError(1, "not permitted")


@pytest.fixture
def parts(source: Path, tiny: Callable[..., Settings], tmp_path: Path) -> list[Path]:
    return packed_parts(source, tmp_path, 3, tiny())


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_missing_and_doubled_parts(parts: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    for given_, told in (
        (parts[:2], "missing: part 3/3"),
        (parts[1:], "missing: part 1/3"),
        ([*parts, parts[1]], "part 2/3, which .* is too"),
        ([*parts, tmp_path], "part.json: not found: not a part of a pack"),
        ([], "no parts given"),
    ):
        with pytest.raises(InputError, match=told):
            merge(given_, out)
    assert not out.exists()


def test_parts_of_other_packs(
    source: Path, make_source: MakeSource, parts: list[Path], tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    other = make_source(tmp_path / "x" / "source", range(41))
    for number, (folder, chosen, on_bad, told) in enumerate(
        (
            (source, tiny(size=5), SKIP, "other preprocessing"),
            (source, tiny(shard_size=6), SKIP, "other shard-size"),
            (source, tiny(val=0.3), SKIP, "other val"),
            (source, tiny(), OnBad("skip", 19), "other --on-bad"),
            (other, tiny(), SKIP, "other source"),
        )
    ):
        out = tmp_path / f"other {number}"
        pack(folder, out, chosen, part=Part(3, 3), on_bad=on_bad)
        with pytest.raises(InputError, match=f"a part of another pack than .*{told}"):
            merge([*parts[:2], out], tmp_path / "out")
    pack(source, tmp_path / "of 4", tiny(), part=Part(3, 4), on_bad=SKIP)
    with pytest.raises(InputError, match=r"part 3/4, where .* is part 1/3"):
        merge([*parts[:2], tmp_path / "of 4"], tmp_path / "out")
    edit(parts[2] / PART, plan="0" * 64)  # a source whose listing is the same, and whose images are not
    with pytest.raises(InputError, match="other content of the source"):
        merge(parts, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda part: edit(part / PART, part="4/3"), "part.json: --part 4/3: allowed: 1/N to N/N"),
        (lambda part: edit(part / PART, bad={"x": [1]}), "part.json: bad"),
        (lambda part: edit(part / PART, bad=[]), "part.json: bad"),
        (lambda part: edit(part / PART, limit=-1), "part.json: --bad-limit"),
        (lambda part: edit(part / PART, more=1), "part.json: more"),
        (lambda part: edit(part / PART, bad={"x": [["a", "b", "c"]] * 9}), "bad images, others are named"),
        (lambda part: (part / PART).write_text("["), "part.json: not a JSON file"),
        (lambda part: (part / FILE).unlink(), "index.json: not found"),
        (lambda part: (part / "train-000001.tar").unlink(), r"000001\.tar: missing or damaged"),
        (lambda part: os.truncate(part / "train-000001.tar", 5), r"000001\.tar: missing or damaged"),
        (lambda part: os.truncate(part / "train-samples.npy", 5), r"samples\.npy: 5 bytes"),
    ],
)
def test_damaged_parts(
    parts: list[Path], tmp_path: Path, change: Callable[[Path], object], told: str
) -> None:
    with_it = next(part for part in parts if (part / "train-000001.tar").exists())
    change(with_it)
    with pytest.raises(InputError, match=told):
        merge(parts, tmp_path / "out")
    assert not (tmp_path / "out" / FILE).exists()


def test_a_damaged_shard_is_seen_as_it_is_copied(
    parts: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray((parts[0] / "train-000000.tar").read_bytes())
    data[2000] ^= 1
    (parts[0] / "train-000000.tar").write_bytes(data)
    monkeypatch.setattr(merge_module.os, "link", no_link)
    with pytest.raises(InputError, match=r"train-000000\.tar: missing or damaged; pack the part again"):
        merge(parts, tmp_path / "out")


def test_a_merge_begins_anew_after_a_stop(
    parts: list[Path], source: Path, tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done == 3:
            raise StoppedError

    out = tmp_path / "out"
    with pytest.raises(StoppedError):
        merge(parts, out, stop)
    assert (out / LOCK).exists() and not (out / FILE).exists()
    merge(parts, out)
    pack(source, tmp_path / "whole", tiny(), on_bad=SKIP)
    assert contents(out) == contents(tmp_path / "whole")
    with pytest.raises(InputError, match=r"not empty and not begun by shards\.merge"):
        merge(parts, out)
    for inside in (parts[0], parts[1] / "deep"):
        with pytest.raises(InputError, match="lies inside the part"):
            merge(parts, inside)


def test_a_part_goes_on_and_is_never_taken_for_another(
    source: Path, parts: list[Path], tiny: Callable[..., Settings], tmp_path: Path
) -> None:
    def again(part: Part | None, folder: Path = parts[1]) -> bool:
        return pack(source, folder, tiny(), part=part, on_bad=SKIP).complete_before

    assert again(Part(2, 3))
    for other in (Part(1, 3), Part(2, 4), None):
        with pytest.raises(InputError, match="holds part 2/3; choose another --out"):
            again(other)
    assert not again(None, tmp_path / "whole")
    with pytest.raises(InputError, match="holds a whole pack"):
        again(Part(1, 3), tmp_path / "whole")

    class StoppedError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done > 20:
            raise StoppedError

    half = tmp_path / "half"
    with pytest.raises(StoppedError):
        pack(source, half, tiny(), part=Part(1, 3), on_bad=SKIP, report=stop)
    for other in (Part(2, 3), None):
        with pytest.raises(InputError, match=r"packed with other settings .part is '1/3' there"):
            again(other, half)
    assert not again(Part(1, 3), half)
    assert contents(half) == contents(parts[0])


def test_too_many_parts_and_words_that_are_none(
    source: Path, tmp_path: Path, command: Command, tiny: Callable[..., Settings]
) -> None:
    for text in ("0/3", "4/3", "1", "1/0", "a/b", "1/99999", "-1/2", "1/2/3"):
        code, _, err = command(pack_main, source, "--out", tmp_path / "x", *TINY, f"--part={text}")
        assert code == 2 and f"--part {text}: allowed: 1/N to N/N" in err
    with pytest.raises(InputError, match="there are fewer shards than parts"):
        pack(source, tmp_path / "y", tiny(), part=Part(99, 100), on_bad=SKIP)
    code, _, err = command(pack_main, source, "--out", "memory://x", *TINY, "--part", "1/2")
    assert code == 2 and "allowed with --part: a folder of this machine" in err


def test_the_commands(make_source: MakeSource, tmp_path: Path, command: Command) -> None:
    source = make_source(tmp_path / "source", range(30))
    flags = [*TINY, "--shard-size", 5]
    assert command(pack_main, source, "--out", tmp_path / "whole", *flags)[0] == 0
    for number in (1, 2):
        out = tmp_path / str(number)
        assert command(pack_main, source, "--out", out, *flags, "--part", f"{number}/2")[0] == 0
    code, out_, _ = command(merge_main, tmp_path / "2", tmp_path / "1", "--out", tmp_path / "merged")
    assert code == 0 and "samples in" in out_
    assert contents(tmp_path / "merged") == contents(tmp_path / "whole")
    links = {path.stat().st_nlink for path in (tmp_path / "merged").glob("*.tar")}
    assert links == {2}  # nothing was copied
    shutil.rmtree(tmp_path / "1")
    code, _, err = command(merge_main, tmp_path / "1", tmp_path / "2", "--out", tmp_path / "again")
    assert code == 2 and "part.json: not found" in err


@pytest.mark.parametrize("listed", [False, True])
def test_the_index_of_a_whole_pack_is_written_anew(
    source: Path, tiny: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: bool
) -> None:
    """As it is, and in the form that a larger one has."""
    pack(source, tmp_path / "old", tiny(), on_bad=SKIP)
    if listed:
        monkeypatch.setattr(write, "HELD_SAMPLES", -1)
    merged = merge([tmp_path / "old"], tmp_path / "new")
    pack(source, tmp_path / "whole", tiny(), on_bad=SKIP)
    assert contents(tmp_path / "new") == contents(tmp_path / "whole")
    assert (merged.skipped, Index.load(tmp_path / "new").header.version) == (3, 4 if listed else 3)
    for text, told in (
        ("{}\n", r"bad\.jsonl: a line without 'key'"),
        ("", "counts 3 bad images, others are named"),
    ):
        (tmp_path / "old" / "bad.jsonl").write_text(text)
        with pytest.raises(InputError, match=told):
            merge([tmp_path / "old"], tmp_path / "again")


def test_an_index_of_other_peoples_tars_is_no_part(tmp_path: Path) -> None:
    write_numbers(tmp_path / "tars" / "0.tar", range(10))
    indexed(tmp_path / "index", str(tmp_path / "tars"))
    with pytest.raises(InputError, match="an index of other people's tars"):
        merge([tmp_path / "index"], tmp_path / "out")
