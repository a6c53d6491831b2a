"""verify --repair: what is damaged is made again to the same bytes, or stays; nothing else is touched."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.checking.repair import repair
from shards.checking.verifier import problems
from shards.header import FILE
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.verify import main
from tests.support.foreign_tars import write_numbers
from tests.support.tiny_set import Command, contents
from tests.unit.shards.conftest import MakeSource

FAULTS = {
    "gone": lambda path: path.unlink(),
    "cut": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"more"),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-700] + b"\x01" + path.read_bytes()[-699:]),
    "other": lambda path: path.write_bytes(b"not a shard"),
}


@pytest.fixture(scope="module")
def source(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("repair") / "source", range(40))


def states(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_made_good_and_nothing_else_touched(
    packed: Path, source: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = Path(shutil.copytree(packed, tmp_path_factory.mktemp("any") / "copy"))
    names = sorted(path.name for path in folder.iterdir() if path.suffix in (".tar", ".npy"))
    damage = data.draw(st.dictionaries(st.sampled_from(names), st.sampled_from(sorted(FAULTS)), max_size=4))
    for name, fault in damage.items():
        FAULTS[fault](folder / name)
    before = states(folder)
    lines = list(repair(folder, source))
    assert contents(folder) == contents(packed)
    assert sorted(line.partition(":")[0] for line in lines) == sorted(damage)
    assert all("made again from" in line for line in lines)
    after = states(folder)
    assert {name for name in after if after[name] != before.get(name)} == set(damage)
    assert list(problems(folder)) == []


def test_the_command_says_what_it_did(copy: Path, packed: Path, source: Path, command: Command) -> None:
    FAULTS["gone"](copy / "train-000001.tar")
    FAULTS["cut"](copy / "val-samples.npy")
    assert command(main, copy, "--jobs", 1)[0] == 1
    code, out, err = command(main, copy, "--repair", source, "--jobs", 1)
    assert (code, err) == (0, "") and [line for line in out.splitlines() if "warning" not in line] == [
        "train-000001.tar: made again from source",
        "val-samples.npy: made again from its shards",
        f"{copy}: sound (30 train, 10 val samples)",
    ]
    assert contents(copy) == contents(packed)
    again = command(main, copy, "--repair", source)[1]
    assert "made again" not in again and again.endswith(f"{copy}: sound (30 train, 10 val samples)\n")


@pytest.mark.slow
def test_several_processes_make_the_same(copy: Path, packed: Path, source: Path) -> None:
    for name in ("train-000000.tar", "train-000002.tar", "val-000000.tar"):
        FAULTS["one bit"](copy / name)
    assert len(list(repair(copy, source, jobs=2))) == 3
    assert contents(copy) == contents(packed)


@pytest.mark.parametrize("change", ["image", "label", "fewer"])
def test_a_source_that_has_changed_leaves_the_old_shard(
    make_source: MakeSource, packed: Path, copy: Path, tmp_path: Path, command: Command, change: str
) -> None:
    other = make_source(tmp_path / "other", range(40 if change != "fewer" else 3))
    if change == "image":
        for path in other.glob("*.png"):
            Image.new("RGBA", (12, 12), "red").save(path)
    elif change == "label":
        for path in other.glob("*.csv"):
            path.write_bytes((other / "cs1.csv").read_bytes())
    FAULTS["one bit"](copy / "train-000001.tar")
    FAULTS["gone"](copy / "train-samples.npy")
    before = contents(copy)
    code, out, _ = command(main, copy, "--repair", other, "--jobs", 1)
    assert code == 1 and contents(copy) == before
    why = "holds no samples for it" if change == "fewer" else "gives other bytes than the index's SHA-256"
    assert f"train-000001.tar: not repaired: other {why}" in out
    assert "train-samples.npy: not repaired: its shard train-000001.tar is damaged" in out


@pytest.mark.parametrize("what", ["labels", "kind", "nothing", "inside"])
def test_what_was_not_packed_is_one_line(
    copy: Path, source: Path, tmp_path: Path, tiny: Callable[..., Settings], command: Command, what: str
) -> None:
    FAULTS["one bit"](copy / "train-000001.tar")
    before = contents(copy)
    folder, given, says = copy, source, "a.png: has no a.csv beside it"
    if what in ("labels", "kind"):
        given = tmp_path / "flat"
        given.mkdir()
        for name in ("a", "b"):
            (given / name).mkdir()
            shutil.copyfile(source / "cs1.png", given / name / f"{name}.png")
    if what == "labels":  # another class
        pack(given, tmp_path / "out", tiny())
        shutil.copytree(given / "b", given / "c")
        (given / "c" / "b.png").rename(given / "c" / "c.png")
        folder, says = tmp_path / "out", "not packed from flat as it is read here: other labels"
        for shard in folder.glob("*.tar"):
            FAULTS["cut"](shard)
    elif what == "nothing":
        given, says = tmp_path / "absent", "no such file or folder"
    elif what == "inside":
        given, says = copy, "no csX.png and csX.csv in it"
    code, _, err = command(main, folder, "--repair", given, "--jobs", 1)
    assert code == 2 and err.count("\n") == 1 and says in err
    assert contents(copy) == before


def test_a_pack_of_several_tars_is_made_again_from_them(
    tmp_path: Path, tiny: Callable[..., Settings], command: Command
) -> None:
    tars = [str(write_numbers(tmp_path / "tars" / f"{k}.tar", range(10 * k, 10 * k + 10))) for k in range(2)]
    out = tmp_path / "packed"
    pack(tars, out, tiny())
    before = contents(out)
    for source in (tars, [f"{tmp_path}/tars/{{0..1}}.tar"]):
        FAULTS["one bit"](out / "train-000001.tar")
        code, told, _ = command(main, out, "--jobs", 1, "--repair", *source)
        assert code == 0 and "train-000001.tar: made again from" in told and contents(out) == before


def test_bad_usage_is_one_line(copy: Path, source: Path, command: Command) -> None:
    code, _, err = command(main, f"file://{copy}", "--repair", source)
    assert code == 2 and "--repair: file://" in err and "allowed: a folder on this machine" in err
    code, _, err = command(main, copy, "--depth", "2")
    assert code == 2 and "only for --repair" in err
    (copy / FILE).write_text("{")
    code, _, err = command(main, copy, "--repair", source)
    assert code == 2 and "index.json: not JSON" in err and err.count("\n") == 1


def test_a_shard_that_is_a_folder_or_a_link_is_told_or_replaced(
    copy: Path, packed: Path, source: Path, tmp_path: Path, command: Command
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (copy / "train-000001.tar").unlink()
    (copy / "train-000001.tar").symlink_to(precious)
    assert command(main, copy, "--repair", source, "--jobs", 1)[0] == 0
    assert precious.read_text() == "precious" and contents(copy) == contents(packed)
    (copy / "train-000001.tar").unlink()
    (copy / "train-000001.tar").mkdir()
    code, _, err = command(main, copy, "--repair", source, "--jobs", 1)
    assert code == 2 and "train-000001.tar: a folder is in the place of a file" in err
