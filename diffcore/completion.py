"""Shell completion of ``diffcore``: shtab makes the script from the commands' own parsers."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import shtab

from diffcore.commands import COMMANDS


def script_for(shell: str) -> str:
    """The script for bash, zsh or tcsh."""
    made = {
        name: importlib.import_module(command.module).parser(f"diffcore {name}")
        for name, command in COMMANDS.items()
    }
    for parser in made.values():
        _complete_files(parser)

    def known(prog: str, **_: Any) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = made[prog.split()[-1]]
        return parser

    root = argparse.ArgumentParser(prog="diffcore")
    root.add_argument("--version", action="store_true")
    # argparse calls it for each command's parser, with its prog: here those that the commands made.
    commands = root.add_subparsers(dest="command", parser_class=known)  # type: ignore[call-overload]
    for name, command in COMMANDS.items():
        commands.add_parser(name, help=command.line)
    return shtab.complete(root, shell)


def _complete_files(parser: argparse.ArgumentParser) -> None:
    """What is a path is completed as one, in the commands of a command too."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                _complete_files(below)
        elif action.type is Path:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
