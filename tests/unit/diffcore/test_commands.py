"""The one command: what it lists, that every command keeps the contract, and how they answer."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffbase import cli
from diffbase.version import VERSION
from diffcore import __main__ as door
from diffcore.commands import COMMANDS
from tests.unit.test_house import COMMANDS as FILES
from tests.unit.test_house import REPOSITORY, name

INTERNAL = {
    "diffcore/__main__.py", "diffcore/memory/__main__.py", "diffcore/memory/measure/outside.py",
    "launch/notify/__main__.py",
    "launch/notify/textfile.py", "launch/ranks.py",
    "launch/supervise/allreduce.py", "launch/supervise/probe/check_data.py", "launch/supervise/probe/rank.py",
    "launch/supervise/start.py",
}  # fmt: skip
"""Files that are run and are no command of their own: they lead to commands, or the toolkit runs them."""
OVERRIDES = ["train", "submit", "plan", "fit", "measure", "show"]
"""Commands on a config, whose other flags are its fields."""


def run(*words: str, cwd: Path = REPOSITORY) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "diffcore", *words]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


def test_help_lists_every_command() -> None:
    text = run("--help").stdout
    for command, entry in COMMANDS.items():
        assert f"  {command:12} {entry.line}\n" in text
    assert max(map(len, text.splitlines())) <= 80
    assert run().stdout == text


def test_every_file_that_is_run_is_a_command() -> None:
    named = {entry.module.replace(".", "/") + ".py" for entry in COMMANDS.values()}
    assert {name(path) for path in FILES} - INTERNAL <= named


def test_the_door_loads_nothing_that_is_slow() -> None:
    code = "import sys, diffcore.__main__; print({'pydantic', 'torch', 'numpy', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_itself_as_it_was_called(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    entry = COMMANDS[command]
    module = importlib.import_module(entry.module)
    parser = module.parser(f"diffcore {command}")
    assert parser.format_usage().startswith(f"usage: diffcore {command} ")
    with pytest.raises(SystemExit) as left:
        module.main(["--help"], f"diffcore {command}")
    assert left.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: diffcore {command} ")


@pytest.mark.parametrize("command", COMMANDS)
def test_a_mistyped_flag_is_one_line(command: str) -> None:
    words = {
        "train": ["--config", "demo"], "submit": ["--config", "demo", "--cluster", "local"],
        "plan": ["--config", "demo"], "fit": ["--config", "demo", "--gpu", "24GB"],
        "measure": ["--config", "demo", "--out", "x"], "compare": ["a", "b"], "summary": ["a"],
        "show": ["--config", "demo", "--image", "x", "--out", "y"], "jobs": ["list"], "box": ["status"],
        "pack": ["a", "--out", "b"], "merge": ["a", "--out", "b"], "index": ["a", "--out", "b"],
        "render": ["--out", "b", "--count", "1"],
        "sample": ["a", "--out", "b.png"], "export": ["a", "--out", "b"],
    }.get(command, ["a"])  # fmt: skip
    module = importlib.import_module(COMMANDS[command].module)
    with pytest.raises(cli.InputError, match="--no-such-flag"):
        module.main([*words, "--no-such-flag", "1"], f"diffcore {command}")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["pakc"], "unknown command 'pakc'; did you mean pack?"),
        (["--print-completion", "fish"], "--print-completion fish: allowed are bash, zsh, tcsh"),
        (["sample", "--out", "x.png"], "the run is missing: give its folder"),
        (["sample", "a", "--run", "b", "--out", "x.png"], "give the run once"),
        (["fit", "--config", "demo", "--gpu", "H1"], "'H1' is no card that is known here; did you mean H100"),
        (["train", "--config", "no-such"], "no such config file; by name there are avatar, "),
    ],
)
def test_mistakes_at_the_door(words: list[str], line: str) -> None:
    done = run(*words)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and line in done.stderr
    assert done.stderr.count("\n") == 1 and not done.stdout


def test_version() -> None:
    assert run("--version").stdout == f"diffcore {VERSION}\n"


@pytest.mark.parametrize("shell", door.SHELLS)
def test_completion_knows_every_command(shell: str) -> None:
    script = door.completion(shell)
    assert all(command in script for command in COMMANDS)


def test_bash_completes_commands_and_flags() -> None:
    ask = """
    source /dev/stdin
    COMP_WORDS=(diffcore ch); COMP_CWORD=1; _shtab_diffcore; echo "${COMPREPLY[@]}"
    COMP_WORDS=(diffcore pack --shard-s); COMP_CWORD=2; _shtab_diffcore; echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", ask], input=door.completion("bash"), capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["checkpoints", "--shard-size"], done.stderr


def test_help_of_a_config_shows_the_chosen_network_only() -> None:
    ddpm = run("train", "--config", "ddpm-cifar10", "--help").stdout
    assert "--model.embedding" in ddpm and "--model.tau_tokens" not in ddpm
    kind = run("train", "--model.kind", "diffusers", "--help").stdout
    assert "--model.cross_attention_dim" in kind and "--model.embedding" not in kind
    every = run("train", "--help").stdout
    assert "--model.embedding" in every and "--model.tau_tokens" in every


@pytest.mark.parametrize("alias", [[], ["--run"]])
def test_the_run_is_the_first_argument_or_a_flag(alias: list[str]) -> None:
    parser = cli.Parser()
    cli.add_run(parser)
    parser.add_argument("--out")
    for words in (["--out", "x", *alias, "r"], [*alias, "r", "--out", "x"]):
        assert cli.given_run(parser.parse_args(words)) == Path("r")


@pytest.mark.parametrize(("quiet", "as_json"), [(q, j) for q in (False, True) for j in (False, True)])
def test_answers(quiet: bool, as_json: bool, capsys: pytest.CaptureFixture[str]) -> None:
    flags = argparse.Namespace(quiet=quiet, json=as_json)
    with cli.answer(flags) as give:
        print("words")
        print("progress", file=sys.stderr)
        give({"loss": float("nan"), "out": Path("a"), "rows": [1.5, float("inf")]})
    out, err = capsys.readouterr()
    assert err == ("" if quiet else "progress\n")
    if as_json:
        assert json.loads(out) == {"loss": None, "out": "a", "rows": [1.5, None]}
    else:
        assert out == ("" if quiet else "words\n")


def test_an_error_is_said_though_it_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        with cli.answer(argparse.Namespace(quiet=True, json=True)) as give:
            give({})
            raise cli.InputError("bad")

    with pytest.raises(SystemExit):
        cli.run(failing)
    assert capsys.readouterr() == ("", "error: bad\n")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words", "keys"),
    [
        ("plan", ["--device", "cpu"], {"planned", "measured", "run", "advice"}),
        ("plan", ["--check", "--gpu", "rtx 4090"], {"fits", "planned_bytes", "room_bytes"}),
        (
            "fit",
            ["--gpu", "A100-80GB", "--zero", "1", "--top", "1"],
            {"card", "best", "candidates"},
        ),
    ],
)
def test_json_is_all_that_is_printed(
    command: str,
    words: list[str],
    keys: set[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    memory_config: Path,
) -> None:
    door.main([command, "--config", str(memory_config), *words, "--json"])
    assert keys <= json.loads(capsys.readouterr().out).keys()


def flags_of(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, argparse.Action]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from flags_of(below)
        else:
            yield parser, action


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("word", ["s3://bucket/x", "s3:/bucket/x", "file:///tmp/x", "https://host/x"])
def test_where_a_path_is_wanted_an_address_is_refused(command: str, word: str) -> None:
    """Else a folder ``s3:`` is made. Where an address is taken, it stays as it is."""
    parser = importlib.import_module(COMMANDS[command].module).parser(f"diffcore {command}")
    for owner, action in flags_of(parser):
        if action.type is Path or (action.type is cli.place and "://" not in word):
            with pytest.raises(argparse.ArgumentError, match="is an address"):
                owner._get_value(action, word)
        elif action.type is cli.place:
            assert owner._get_value(action, word) == word
        else:
            assert action.dest not in ("out", "folder") or action.nargs == 0
