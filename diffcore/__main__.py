"""diffcore COMMAND ...: every command behind one name; ``python -m diffcore`` is the same."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import Any

from diffbase import cli
from diffbase.cli import InputError
from diffbase.line import say
from diffbase.version import VERSION
from diffcore.commands import COMMANDS, GROUPS

SHELLS = ("bash", "zsh", "tcsh")


def help_text() -> str:
    """What ``--help`` prints: the commands in groups, with a line each."""
    lines = ["usage: diffcore COMMAND ...", "", "Conditional diffusion models: from tar shards to samples."]
    for title, group in GROUPS.items():
        lines += ["", f"{title}:", *(f"  {name:12} {command.line}" for name, command in group.items())]
    lines += [
        "",
        "diffcore COMMAND --help    a command's flags",
        "diffcore --version",
        f"diffcore --print-completion {{{','.join(SHELLS)}}}",
    ]
    return "\n".join(lines)


def completion(shell: str) -> str:
    """A script that makes ``shell`` complete commands, flags, choices and files. InputError for others."""
    if shell not in SHELLS:
        raise InputError(f"--print-completion {shell}: allowed are {', '.join(SHELLS)}")
    from diffcore.completion import script_for

    return script_for(shell)


def main(argv: Sequence[str] | None = None) -> Any:
    """Run the command that the first argument names; see ``--help``."""
    name, *rest = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    if name in ("-h", "--help"):
        say(help_text())
    elif name in ("-V", "--version"):
        say(f"diffcore {VERSION}")
    elif name == "--print-completion":
        say(completion(rest[0] if rest else "(none)"))
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"allowed: {', '.join(COMMANDS)}"
        raise InputError(f"unknown command {name!r}; {hint}")
    else:
        command = COMMANDS[name]
        return getattr(importlib.import_module(command.module), command.function)(rest, f"diffcore {name}")


def script() -> None:
    """The console script."""
    cli.run(main)


if __name__ == "__main__":
    script()
