"""Checkpoints on disk: whole or not there, put together from any ranks, never a place for code."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pickle
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError

from diffbase import system_error
from diffbase.cli import InputError
from diffcore import checkpoints
from diffcore.engine.engine import Engine
from diffcore.engine.ranks import World
from diffcore.runs import checkpoint, marks, saver, tensors
from diffcore.runs.stored.record import KINDS, OtherVersionError, State, read_state, shard_name
from diffcore.runs.stored.shards import Shards


def written(run: Path, *steps: int, world: int = 2, old: bool = False) -> list[Path]:
    """Checkpoints of one parameter w = [0, 1, 2, 3] whose first half rank 0 has; ``old``: as code before
    wrote COMPLETE, with one digest a file."""
    run.mkdir(exist_ok=True)
    for step in steps:
        manifest = {}
        for rank in range(world):
            count = 4 // world
            part = torch.arange(4.0)[rank * count : (rank + 1) * count]
            tensors = {f"{kind}/w": part + i for i, kind in enumerate(KINDS)}
            place = World(rank, world, rank, torch.device("cpu"))
            starts = dict.fromkeys(tensors, rank * count)
            manifest |= saver.write_shard(saver.temporary_of(run, step), place, tensors, starts)
        state = State(step, step * 4, step, {}, {}, world, 1, "fp32", "unknown", {"w": [2, 2]})
        if old:
            for name in manifest:
                manifest |= saver._synced(saver.temporary_of(run, step) / name)
        saver.finish(run, state, manifest)
    return checkpoint.complete(run)


def test_newest_is_the_newest_complete(tmp_path: Path) -> None:
    first, second = written(tmp_path, 5, 10)
    assert checkpoint.newest(tmp_path) == (second, [])
    assert read_state(second).step == 10
    assert torch.equal(checkpoint.read_weights(second, "weights")["w"], torch.arange(4.0).view(2, 2))
    assert torch.equal(checkpoint.read_weights(second, "ema")["w"], 1 + torch.arange(4.0).view(2, 2))
    for path in [second, *second.iterdir()]:
        assert path.stat().st_mode & 0o077 == 0, path
    (second / "COMPLETE").unlink()
    assert checkpoint.newest(tmp_path) == (
        first,
        ["checkpoint step-00000010 skipped: no COMPLETE, its save was cut off"],
    )


NAMES = ["shard-00000-of-00002.safetensors", "shard-00001-of-00002.safetensors", "state.json"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "pickle"])
@pytest.mark.parametrize("old", [False, True])
def test_a_damaged_checkpoint_is_skipped_and_named(tmp_path: Path, name: str, damage: str, old: bool) -> None:
    first, second = written(tmp_path, 5, 10, old=old)
    path = second / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes({"flip": data, "truncate": data[:-1], "pickle": malicious(tmp_path)}[damage])
    found, skipped = checkpoint.newest(tmp_path)
    assert found == first and not (tmp_path / "owned").exists()
    assert len(skipped) == 1 and "step-00000010" in skipped[0] and name in skipped[0]


def test_what_code_before_wrote_is_read(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5, old=True)
    assert checkpoint.newest(tmp_path, whole=False) == (folder, [])
    for i, kind in enumerate(KINDS):
        assert torch.equal(checkpoint.read_weights(folder, kind)["w"], i + torch.arange(4.0).view(2, 2))
    (folder / NAMES[0]).write_bytes(bytes((folder / NAMES[0]).stat().st_size))
    found, [line] = checkpoint.newest(tmp_path, whole=False)  # of such a file no reader can check a part
    assert found is None and "sha256" in line


def malicious(folder: Path) -> bytes:
    class Payload:
        def __reduce__(self) -> object:
            return os.mkdir, (str(folder / "owned"),)

    return pickle.dumps(Payload())


@pytest.mark.parametrize("name", [*NAMES, "COMPLETE", "extra.pt", "mp_rank_00_model_states.pt", "latest"])
def test_a_pickle_anywhere_is_never_executed(tmp_path: Path, name: str) -> None:
    [folder] = written(tmp_path, 5)
    (folder / name).write_bytes(malicious(tmp_path))
    if name in NAMES:  # one whose COMPLETE agrees with it
        manifest = json.loads((folder / "COMPLETE").read_text())
        manifest |= saver._synced(folder / name)
        (folder / "COMPLETE").write_text(json.dumps(manifest))
    found, _ = checkpoint.newest(tmp_path)
    try:
        if found is not None:
            read_state(found)
            checkpoint.read_weights(found, "ema")
    except (InputError, ValueError):
        pass
    assert not (tmp_path / "owned").exists()


def test_a_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5)
    manifest = json.loads((folder / "COMPLETE").read_text())
    (folder / "COMPLETE").write_text(json.dumps(manifest | {"../x": {"bytes": 1, "sha256": "0"}}))
    assert "no file's plain name" in str(checkpoint.check(folder))


def test_prune_spares_the_newest_the_best_and_the_marked(tmp_path: Path) -> None:
    folders = written(tmp_path, 1, 2, 3, 4, 5)
    (folders[0] / checkpoint.KEEP).touch()
    best = {"step": 2, "metric": "validation/loss", "value": 0.1}
    (folders[0].parent / "best.json").write_text(json.dumps(best))
    checkpoint.prune(tmp_path, 2)
    assert [f.name[-1] for f in checkpoint.complete(tmp_path)] == ["1", "2", "4", "5"]
    assert checkpoint.best(tmp_path) == (folders[1], best)


def test_a_save_that_was_cut_off_is_written_over(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5)
    (folder / "COMPLETE").unlink()
    temporary = saver.temporary_of(tmp_path, 5)
    temporary.mkdir()
    (temporary / NAMES[0]).write_bytes(b"torn")
    assert written(tmp_path, 5) == [folder] and checkpoint.check(folder) is None


def test_what_is_made_again_is_cleared(tmp_path: Path) -> None:
    first, second = written(tmp_path, 5, 10)
    (second / NAMES[0]).write_bytes(b"torn")
    saver.temporary_of(tmp_path, 15).mkdir()
    (tmp_path / checkpoint.SAVING).touch()
    checkpoint.clear_after(tmp_path, 5)
    assert list(first.parent.iterdir()) == [first] and checkpoint.newest(tmp_path) == (first, [])
    assert not (tmp_path / checkpoint.SAVING).exists()


def test_a_checkpoint_of_another_version(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5)
    tree = json.loads((folder / "state.json").read_text()) | {"version": 99}
    (folder / "state.json").write_text(json.dumps(tree))
    with pytest.raises(InputError, match="version 99"):
        read_state(folder)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5)
    (folder / NAMES[1]).unlink()
    with pytest.raises(InputError, match=f"{NAMES[1]}: No such file"):
        checkpoint.read_weights(folder, "weights")


@given(cuts=st.lists(st.integers(0, 100), max_size=6), start=st.integers(0, 100), end=st.integers(0, 100))
def test_any_part_is_found_among_any_shards(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], start: int, end: int
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    whole = torch.arange(100.0)
    bounds = sorted({0, 100, *cuts})
    for rank, (low, high) in enumerate(itertools.pairwise(bounds)):
        place = World(rank, len(bounds) - 1, rank, torch.device("cpu"))
        saver.write_shard(folder, place, {"weights/w": whole[low:high].clone()}, {"weights/w": low})
    start, end = min(start, end), max(start, end)
    assert torch.equal(Shards(folder).read("weights", "w", start, end - start), whole[start:end])


def test_whatever_lies_in_the_way_of_a_save_is_cleared(tmp_path: Path) -> None:
    written(tmp_path, 5)
    saver.temporary_of(tmp_path, 10).write_text("no folder")
    checkpoint.clear_after(tmp_path, 5)
    assert not saver.temporary_of(tmp_path, 10).exists()


def test_the_command_lists_checks_and_marks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [written(tmp_path, step)[-1] for step in (5, 10, 15)]
    (folders[2] / shard_name(0, 2)).write_bytes(b"")
    checkpoints.main([str(tmp_path), "--keep", "5", "10", "--release", "10"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("step-00000005  ") and lines[0].endswith("2 ranks, ZeRO-1, fp32  kept")
    assert lines[1].endswith("fp32") and "damaged: shard-00000-of-00002.safetensors has 0 bytes" in lines[2]
    with pytest.raises(InputError, match="no complete checkpoint of step 7; allowed: 5, 10, 15"):
        checkpoints.main([str(tmp_path), "--keep", "7"])
    with pytest.raises(InputError, match="no checkpoints there"):
        checkpoints.main([str(tmp_path / "nowhere")])


@pytest.mark.parametrize(("updates", "kinds"), [(0, ["weights"]), (3, ["weights", "exp_avg", "exp_avg_sq"])])
def test_a_checkpoint_before_the_first_update_has_no_moments(updates: int, kinds: list[str]) -> None:
    """A signal may come before the first step, and Adam makes its moments in it."""

    class Bare(Engine):
        def __init__(self) -> None: ...

        def _make_moments(self, updates: int) -> None: ...

        def masters(self) -> list[torch.Tensor]:
            return []

        def moments(self) -> dict[str, list[torch.Tensor]]:
            return {"exp_avg": [], "exp_avg_sq": []}

    assert list(Bare().states(updates)) == kinds


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space left") as found:
        written(tmp_path, 5)
    assert found.value.errno == errno.ENOSPC and "shard-00000" in str(found.value.filename)


def test_a_disk_that_does_not_answer_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, 5)

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(tensors.os, "pread", failing)
    monkeypatch.setattr(system_error, "PAUSES", (0.0,) * 6)
    with pytest.raises(OSError, match=r"Input/output error \(EIO, 7 tries\): '.*/step-00000005/shard-"):
        checkpoint.newest(tmp_path)


def test_a_marked_checkpoint_stays_though_it_is_damaged(tmp_path: Path) -> None:
    first, second = written(tmp_path, 5, 10)
    (second / checkpoint.KEEP).touch()
    (second / "COMPLETE").unlink()
    checkpoint.clear_after(tmp_path, 5)
    assert first.exists() and second.exists()


# --- what passes check loads ---


def agreeing(folder: Path, name: str, data: bytes) -> None:
    """Put ``data`` in a file's place, and have COMPLETE agree."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "COMPLETE").read_text()) | saver._synced(folder / name)
    (folder / "COMPLETE").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "change",
    [{"x": 1}, {"step": "10"}, {"step": 5}, {"shapes": {"w": [2, 3]}}, {"shapes": {"v": [2, 2]}}, {"zero": 7},
     {"shapes": {"w": [2**40, 2**40]}}, {"world": 0}, {"scaler": {"a": None}}, {"step": None},
     {"version": None}],
    ids=str,
)  # fmt: skip
def test_a_state_that_is_none_is_skipped_and_named(tmp_path: Path, change: dict[str, Any]) -> None:
    first, second = written(tmp_path, 5, 10)
    tree = json.loads((second / "state.json").read_text()) | change
    agreeing(second, "state.json", json.dumps({k: v for k, v in tree.items() if v is not None}).encode())
    found, [line] = checkpoint.newest(tmp_path)
    assert found == first and line.startswith("checkpoint step-00000010 skipped: ")


def test_a_loss_scales_whole_numbers_come_back_whole(tmp_path: Path) -> None:
    """torch refuses a growth interval that is a float."""
    (folder,) = written(tmp_path, 5)
    scaler = {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000, "_growth_tracker": 7}
    tree = json.loads((folder / "state.json").read_text()) | {"scaler": scaler}
    agreeing(folder, "state.json", json.dumps(tree).encode())
    back = read_state(folder).scaler
    assert back == scaler and {name: type(value) for name, value in back.items()} == {
        name: type(value) for name, value in scaler.items()
    }


@pytest.mark.parametrize(
    "kind", ["overlap", "gap", "two dimensions", "whole numbers", "no starts", "garbage"]
)
def test_shards_that_make_no_whole_are_skipped_and_named(tmp_path: Path, kind: str) -> None:
    first, second = written(tmp_path, 5, 10)
    tensors = {f"{k}/w": torch.arange(2.0) for k in KINDS}
    starts = dict.fromkeys(tensors, {"overlap": 1, "gap": 3}.get(kind, 2))
    if kind == "two dimensions":
        tensors = {k: t.view(2, 1) for k, t in tensors.items()}
    if kind == "whole numbers":
        tensors = {k: t.long() for k, t in tensors.items()}
    metadata = {} if kind == "no starts" else {"starts": json.dumps(starts)}
    data = b"x" * 99 if kind == "garbage" else safetensors.torch.save(tensors, metadata)
    agreeing(second, NAMES[1], data)
    found, [line] = checkpoint.newest(tmp_path)
    assert found == first and line.startswith("checkpoint step-00000010 skipped: ")


def test_a_checkpoint_of_other_code_is_not_passed_over(tmp_path: Path) -> None:
    """To go on from an older one would remove it."""
    _, second = written(tmp_path, 5, 10)
    tree = json.loads((second / "state.json").read_text()) | {"version": 99}
    agreeing(second, "state.json", json.dumps(tree).encode())
    with pytest.raises(OtherVersionError, match="version 99"):
        checkpoint.newest(tmp_path)


def test_a_file_that_complete_does_not_name_is_not_opened(tmp_path: Path) -> None:
    [folder] = written(tmp_path, 5)
    for name in ("shard-00000-of-00001.safetensors", "shard-00002-of-00003.safetensors"):
        (folder / name).write_bytes(b"foreign")
    assert checkpoint.newest(tmp_path) == (folder, [])
    assert torch.equal(checkpoint.read_weights(folder, "weights")["w"], torch.arange(4.0).view(2, 2))


@pytest.mark.parametrize("name", ["step-00000020-backup", "step-20", "step-000000020", "step-x", "step-"])
def test_a_copy_under_another_name_is_no_checkpoint(tmp_path: Path, name: str) -> None:
    folders = written(tmp_path, 10, 20)
    shutil.copytree(folders[1], folders[1].with_name(name))
    assert checkpoint.newest(tmp_path) == (folders[1], []) and checkpoint.complete(tmp_path) == folders
    checkpoint.prune(tmp_path, 1)
    checkpoint.clear_after(tmp_path, 10)
    assert [path.name for path in folders[1].parent.iterdir()] == [name]
    assert checkpoint.check(folders[1].with_name(name)) is None  # it can be drawn from


def test_steps_are_numbers_not_words(tmp_path: Path) -> None:
    folders = written(tmp_path, 99_999_999, 100_000_000)
    assert checkpoint.newest(tmp_path)[0] == folders[1] == checkpoint.folder_at(tmp_path, 100_000_000)


def test_what_a_link_leads_to_is_not_removed(tmp_path: Path) -> None:
    _, second = written(tmp_path, 5, 10)
    second.rename(tmp_path / "elsewhere")
    second.symlink_to(tmp_path / "elsewhere")
    assert checkpoint.newest(tmp_path)[0] == second
    checkpoint.clear_after(tmp_path, 5)
    assert not second.is_symlink() and checkpoint.check(tmp_path / "elsewhere") is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", '{"step": Infinity}', '{"step": 1e999}', '{"step": "2"}', '{"step": 2, "x": 1}', "\xff"],
)
def test_a_damaged_best_is_told_and_set_aside(tmp_path: Path, text: str) -> None:
    folders = written(tmp_path, 1, 2, 3)
    path = folders[0].parent / "best.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"best\.json"):
        checkpoint.best(tmp_path)
    rows = marks.listed(tmp_path)
    assert [row.damaged is None for row in rows] == [True, True, True, False] and rows[3].name == "best.json"
    with pytest.raises(
        InputError, match=r"best\.json.* kept as best\.json\.damaged-.* no checkpoint is removed"
    ):
        checkpoint.prune(tmp_path, 1)
    assert checkpoint.complete(tmp_path) == folders and not path.exists()
    checkpoint.prune(tmp_path, 1)
    assert checkpoint.complete(tmp_path) == folders[2:]


def test_one_checkpoint_does_not_hide_the_others(tmp_path: Path) -> None:
    first, second = written(tmp_path, 5, 10)
    tree = json.loads((first / "state.json").read_text()) | {"version": 99}
    agreeing(first, "state.json", json.dumps(tree).encode())
    rows = marks.listed(tmp_path)
    assert [row.name for row in rows] == [first.name, second.name]
    assert "version 99" in str(rows[0].damaged) and rows[1].damaged is None


@pytest.mark.parametrize("name", ["", "COMPLETE", "state.json", NAMES[1]])
@pytest.mark.parametrize("kind", ["loop", "pipe", "socket", "folder", "device", "nowhere"])
def test_whatever_lies_in_a_files_place_the_older_checkpoint_is_taken(
    tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's path is short
    first, second = written(Path("run"), 5, 10)
    put(second / name, kind)
    found, lines = checkpoint.newest(Path("run"))
    assert found == first and len(lines) <= 1
    checkpoint.clear_after(Path("run"), 5)
    assert [path.name for path in first.parent.iterdir()] == [first.name]


@pytest.mark.parametrize("kind", ["loop", "pipe", "socket", "device", "nowhere"])
def test_whatever_lies_in_the_place_of_the_best_is_set_aside(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written(Path("run"), 5)
    put(checkpoint.folder_of(Path("run")) / "best.json", kind)
    checkpoint.clear_best(Path("run"))
    assert checkpoint.best(Path("run")) is None


def put(path: Path, kind: str) -> None:
    """Something that is no file in the place of ``path``."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    match kind:
        case "loop":
            path.symlink_to(path.name)
        case "pipe":
            os.mkfifo(path)
        case "socket":
            with socket.socket(socket.AF_UNIX) as bound:
                bound.bind(str(path))
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "nowhere":
            path.symlink_to("nowhere")
