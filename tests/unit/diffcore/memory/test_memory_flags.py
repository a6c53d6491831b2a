"""What a plan is of is what was asked for: nothing is dropped or rounded without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from diffbase.cli import InputError
from diffbase.shipped import shipped
from diffcore.memory import __main__ as commands

OF_1 = str(shipped("configs", "deepspeed", "zero1.json"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["plan", "--micro-batch", "7", "--world", "3", "--batch.size", "129"],
            "129 is not micro x .* a batch.size of 126 or 147, or a batch.micro of 1 or 43",
        ),
        (
            ["fit", "--gpu", "24", "--micro-batch", "7", "--batch.micro", "8"],
            "--micro-batch and --batch.micro",
        ),
        (["plan", "--check", "--gpu", "24", "--out", "x"], "--out does not go with --check"),
        (["plan", "--device", "cpu", "--gpu", "24"], "--gpu does not go with --device cpu"),
        (["plan", "--zero", "1", "--engine.zero", "1"], "--zero and --engine.zero are one setting"),
        (["plan", "--zero", "2", "--engine.deepspeed", OF_1], "stage is 1, engine.zero is 2"),
    ],
)
def test_what_contradicts_itself_is_refused(arguments: list[str], told: str, memory_config: Path) -> None:
    command, *flags = arguments
    with pytest.raises(InputError, match=told):
        commands.main([command, "--config", str(memory_config), *flags])


def planned_of(
    capsys: pytest.CaptureFixture[str], config: Path, *flags: str
) -> tuple[list[dict[str, Any]], str]:
    """The plans that ``plan --json`` gives, and its notes."""
    commands.main(["plan", "--json", "--config", str(config), *flags])
    said = capsys.readouterr()
    return json.loads(said.out)["planned"], said.err


def test_the_deepspeed_json_that_is_named_is_planned(
    memory_config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """That of the config, of another stage, is left aside with a note."""
    own = tmp_path / "mine.json"
    own.write_text('{"zero_optimization": {"stage": 2, "reduce_bucket_size": 12345}}')
    asked = ["--world", "2", "--zero", "2"]
    usual, said = planned_of(capsys, memory_config, *asked)
    assert "left aside" not in said
    mine, said = planned_of(capsys, memory_config, *asked, "--engine.deepspeed", str(own))
    assert mine != usual and "left aside" not in said
    of_1 = tmp_path / "of_1.yaml"
    of_1.write_text(f"extends: {memory_config}\nengine: {{zero: 1, deepspeed: {OF_1}}}\n")
    aside, said = planned_of(capsys, of_1, *asked)
    assert aside == usual and "engine.deepspeed of the config is left aside: --zero 2, not 1" in said


@pytest.mark.parametrize(("world", "micro", "size"), [("3", "7", 21), ("2", "4", 8)])
def test_another_batch_than_the_configs_is_told(
    world: str, micro: str, size: int, memory_config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, said = planned_of(capsys, memory_config, "--world", world, "--micro-batch", micro)
    assert ("a batch.size of" in said) == (size != 8)
    assert size == 8 or f"a batch.size of {size} for --micro-batch {micro}, not 8" in said
