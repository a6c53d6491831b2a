"""Calibrations as files: those that ship, one that a GPU writes, and what is none."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from diffbase.cli import InputError
from diffbase.files import write_json
from diffbase.machine import cards, nvml
from diffcore.memory import __main__ as commands
from diffcore.memory import calibration
from diffcore.memory.calibration import ASSUMED, calibration_named, file_of, load, of_card, shipped
from diffcore.memory.measure import calibrate

SHIPPED = sorted(calibration.FOLDER.glob("*.json"))
MINE = {
    "schema": calibration.SCHEMA, "gpu": "NVIDIA GeForce RTX 4090", "cuda": "12.8", "context": 400 << 20,
    "workspaces": 65 << 20, "nccl": 0, "nccl_ranks": 4, "source": "me",
}  # fmt: skip


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_what_ships_is_as_it_would_be_written(path: Path, tmp_path: Path) -> None:
    found = load(path).model_dump(by_alias=True)
    assert path.name == file_of(found)
    write_json(tmp_path / "again.json", found, sort_keys=True)
    assert (tmp_path / "again.json").read_bytes() == path.read_bytes()
    entry = shipped()[found["gpu"], found["cuda"]]
    assert entry.measured and entry.nccl_measured == (found["nccl_ranks"] > 1)


def test_each_gpu_and_version_ships_once() -> None:
    assert len(shipped()) == len(SHIPPED) > 0


def test_a_card_has_what_was_measured_on_it() -> None:
    assert of_card(cards.find("H200")) == shipped()["NVIDIA H200", "13.0"] == calibration_named("NVIDIA H200")
    # A slice of it is another device, and so is a card of which only the size is known.
    assert of_card(cards.find("H200 1g.18gb")) is of_card(cards.of_size(141)) is of_card(None) is ASSUMED


def test_a_file_of_ones_own_is_planned_with(
    tmp_path: Path, memory_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_json(tmp_path / "mine.json", MINE)
    assert calibration_named(str(tmp_path / "mine.json")).nccl_known(8)
    check = ["plan", "--config", str(memory_config), "--gpu", "rtx 4090", "--check", "--json"]

    def planned(*more: str) -> int:
        commands.main([*check, *more])
        return int(json.loads(capsys.readouterr().out)["planned_bytes"])

    assumed = ASSUMED.context + ASSUMED.workspaces + ASSUMED.nccl
    assert planned() - planned("--calibration", str(tmp_path / "mine.json")) == assumed - (465 << 20)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"context": -1}, "context: Input should be greater than or equal to 0, got -1"),
        ({"cuda": "new"}, "cuda: String should match"),
        ({"gpu": "a\nb"}, "gpu: String should match"),
        ({"nccl": 1.5}, "nccl: Input should be a valid integer"),
        ({"schema": "diffcore.calibration/2"}, "schema: Input should be 'diffcore.calibration/1'"),
        ({"more": 1}, "more"),
        ({"nccl_ranks": 0}, "nccl_ranks"),
    ],
)
def test_a_file_that_is_none_is_one_line(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, MINE | change)
    with pytest.raises(InputError, match=rf"x\.json: {says}") as error:
        calibration_named(str(path))
    assert "\n" not in str(error.value)
    path.write_text("[" * 20_000)
    with pytest.raises(InputError, match="more than 10000 bytes"):
        calibration_named(str(path))
    with pytest.raises(InputError, match="no such calibration"):
        calibration_named(str(tmp_path / "none.json"))


FAKE = """#!/bin/sh
[ "$CUDA_VISIBLE_DEVICES" = "$((RANK + 3))" ] && [ "$WORLD_SIZE" = 2 ] && [ "$*" = "-m diffcore.memory.measure.outside" ] || exit 9
[ "$RANK" = 0 ] || { [ ! -e FOLDER/broken ] || { echo "no peer" >&2; exit 1; }; exit 0; }
echo "a library's own line"
echo '{"gpu": "NVIDIA X", "cuda": "13.0", "torch": "2.11", "driver": "580", "ranks": 2, "workspaces": 5,
 "context": 100, "cublas": 20, "cudnn": 3, "nccl": 7}' | tr -d '\\n'
"""  # noqa: E501


@pytest.fixture
def two_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "python").write_text(FAKE.replace("FOLDER", str(tmp_path)))
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(nvml, "count_gpus", lambda: 2)
    monkeypatch.setattr(nvml, "shown_devices", lambda count: ["3", "4"][:count])
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_writes_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.main(["measure", "--calibrate", "--source", "me", "--json"])
    tree = json.loads(capsys.readouterr().out)
    path = tmp_path / "nvidia-x-13.0.json"
    assert tree == json.loads(path.read_text()) == load(path).model_dump(by_alias=True)
    assert tree == {
        "schema": calibration.SCHEMA, "gpu": "NVIDIA X", "cuda": "13.0", "context": 123, "workspaces": 5,
        "nccl": 7, "nccl_ranks": 2, "source": "me, driver 580, torch 2.11",
    }  # fmt: skip
    commands.main(["measure", "--calibrate", "--out", "other.json"])
    said = capsys.readouterr().out
    assert "calibration: other.json" in said and "(2 ranks)" in said and (tmp_path / "other.json").exists()
    (tmp_path / "broken").touch()
    with pytest.raises(InputError, match="--calibrate: no peer"):
        commands.main(["measure", "--calibrate"])


def test_without_a_gpu_it_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(nvml, "count_gpus", lambda: 0)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="--calibrate measures a GPU, and there is none here"):
        commands.main(["measure", "--calibrate"])
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="--config"):  # else it is as it was
        commands.main(["measure", "--out", "x"])
    found = {"gpu": "g", "cuda": "13.0", "torch": "t", "driver": "d", "ranks": 1, "workspaces": 1}
    with pytest.raises(InputError, match="--calibrate: context: "):
        calibrate.tree_of({**found, "context": -9, "cublas": 1, "cudnn": 1, "nccl": 1}, "")
