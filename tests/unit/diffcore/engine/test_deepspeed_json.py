"""DeepSpeed's own JSON: what it refuses is told in one line that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffbase.cli import InputError
from diffbase.files import REPOSITORY
from diffcore.config import configure
from diffcore.engine.engine import checked

ZERO = {"zero_optimization": {"stage": 1}}


def config_of(folder: Path, text: str) -> Any:
    (folder / "zero.json").write_text(text)
    demo = configure.load(REPOSITORY / "configs" / "demo.yaml", {"batch": {"size": 8, "micro": 4}})
    return configure.changed(demo, {"engine": {"deepspeed": folder / "zero.json"}})


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_those_that_ship_are_taken(stage: int) -> None:
    given = {"batch": {"size": 8, "micro": 4}, "engine": {"zero": stage}}
    checked(configure.load(REPOSITORY / "configs" / "demo.yaml", given), 1)


def test_the_throughput_timer_waits_for_no_gpu_unless_it_is_asked_for(tmp_path: Path) -> None:
    def timer(**more: Any) -> dict[str, Any]:
        return dict(checked(config_of(tmp_path, json.dumps(ZERO | more)), 1)["timers"]["throughput"])

    assert timer() == {"enabled": False}
    assert timer(timers={"throughput": {"enabled": True}}) == {"enabled": True}
    with pytest.raises(InputError, match=r"zero\.json: timers is 5, expected an object"):
        timer(timers=5)


@pytest.mark.parametrize(
    "more",
    [
        {"zero_optimization": {"stage": 1, "reduce_bucket_size": "x"}},
        {"zero_optimization": {"stage": 1, "nope": 1}},
        {"activation_checkpointing": 5},
        {"elasticity": {"enabled": True}},
        {"aio": 5},
        {"data_types": []},
        {"communication_data_type": 4},
    ],
)
def test_what_deepspeed_refuses_is_told(more: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"zero\.json: DeepSpeed refuses it: "):
        checked(config_of(tmp_path, json.dumps(ZERO | more)), 1)


@pytest.mark.parametrize("text", ["[" * 3000, "{", "NaN", "\0", '{"a": ' + "9" * 5000 + "}"])
def test_what_is_no_json_is_told(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"zero\.json: not a JSON file"):
        checked(config_of(tmp_path, text), 1)


def test_a_missing_or_huge_file_is_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, " " * (2 << 20))
    with pytest.raises(InputError, match="more than 1048576 bytes"):
        checked(config, 1)
    (tmp_path / "zero.json").unlink()
    with pytest.raises(InputError, match=r"no such file \(engine.deepspeed\)"):
        checked(config, 1)
