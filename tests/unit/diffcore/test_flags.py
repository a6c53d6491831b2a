"""Flags out of range are told before anything is loaded or made."""

from __future__ import annotations

import importlib

import pytest

from diffbase.cli import InputError
from diffcore.commands import COMMANDS

WRONG = [
    "judge x --threads -1", "judge x --threads 99999999999", "judge x --seed -1", "judge x --epochs 0",
    "points x --threads 0", "judge x --width 7", "judge x --lr 0", "judge x --lr 1e300", "judge x --lr nan",
    "findings --jobs 0", "findings --samples -3", "findings --seeds 99", "jobs logs x --rank -1",
    "plan --config demo --world 99999999999", "fit --config demo --gpu " + "9" * 400,
    "render --out x --count -1", "render --out x --count 1 --jobs 0", "verify x --jobs -1",
    "evaluate x --samples -1", "evaluate x --seed -1",
]  # fmt: skip


@pytest.mark.parametrize("line", WRONG)
def test_a_flag_out_of_range_is_one_line(line: str) -> None:
    name, *arguments = line.split()
    command = COMMANDS[name]
    with pytest.raises(InputError) as error:
        getattr(importlib.import_module(command.module), command.function)(arguments, name)
    flag = [word for word in arguments if word.startswith("--")][-1].strip("-")
    assert flag in str(error.value) and len(str(error.value)) < 400
