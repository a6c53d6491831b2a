"""Launchers that hand a program's flags on must not take one for a short form of their own."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable

import pytest

from diffcore.commands import COMMANDS

RANKED = ("train", "evaluate", "measure", "collapse", "sweep")
"""Commands whose ranks a launcher starts."""


def torchrun(given: list[str]) -> list[str]:
    from torch.distributed.run import get_args_parser

    return list(get_args_parser().parse_args(given).training_script_args)


def deepspeed(given: list[str]) -> list[str]:
    from deepspeed.launcher import runner

    return list(runner.parse_args(given).user_args)


def accelerate(given: list[str]) -> list[str]:
    launch = pytest.importorskip("accelerate.commands.launch")
    return list(launch.launch_command_parser().parse_args(given).training_script_args)


@pytest.mark.parametrize("launcher", [torchrun, deepspeed, accelerate])
@pytest.mark.parametrize("name", RANKED)
def test_every_setting_reaches_the_program(
    name: str, launcher: Callable[[list[str]], list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Under at least one name, without a -- in between."""
    flags: dict[str, list[str]] = {}
    for action in importlib.import_module(COMMANDS[name].module).parser()._actions:
        if action.help != argparse.SUPPRESS and "--help" not in action.option_strings:
            setting = {"run_folder": "run"}.get(action.dest, action.dest)
            flags[setting] = [*flags.get(setting, []), *action.option_strings]
    for setting, names in flags.items():
        assert not names or any(_passes(launcher, flag) for flag in names), (setting, names)


def _passes(launcher: Callable[[list[str]], list[str]], flag: str) -> bool:
    try:
        return launcher(["program.py", "--config", "x", flag, "y"])[-2:] == [flag, "y"]
    except SystemExit:  # argparse's "ambiguous option"
        return False
