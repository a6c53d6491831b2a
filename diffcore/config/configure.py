"""A Config from a YAML file and dotted overrides, and every mistake in them as one clear line.

pydantic-settings turns the config tree into ``--help`` and flags; pydantic checks what YAML and flags give
together. Relative paths in a YAML are relative to that YAML; on the command line, to the working directory.
A config that ships with the toolkit may be given by its name (``demo``), also in ``extends``.
``extends: other.yaml`` at a YAML's top takes that file's settings and changes what this one says.
Imports no torch.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from diffbase.cli import InputError, Parser
from diffbase.explain import kinds_of, sections_of, validated
from diffbase.files import path_of
from diffbase.formats import yaml_file
from diffbase.shipped import anchor, config_hint, find_config
from diffcore.config import idle
from diffcore.config.tree import PRETRAINED, Config

LENGTHS = ("steps", "minutes")
"""Of the section train: settings of which a config has one."""


@dataclass(frozen=True)
class _Flags:
    config: Path | None
    overrides: dict[str, Any]


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Config from a YAML file and nested overrides. InputError with field, value and what is allowed."""
    return _checked([*_layers(find_config(path)), overrides or {}], path, "the overrides")


def _checked(layers: Sequence[Mapping[str, Any]], path: Path, over: str) -> Config:
    """``over``: what the last layer is. A mistake is the file's only where that has it too."""
    try:
        return validated(Config, _flat(layers), str(path))
    except InputError as of_both:
        try:
            validated(Config, _flat(layers[:-1]), str(path))
        except InputError:
            raise of_both from None
    return validated(Config, _flat(layers), f"{over} over {path}")


def _flat(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    nothing: dict[str, Any] = {}
    return reduce(_laid_over, layers, nothing)


def _layers(path: Path, above: Sequence[Path] = ()) -> list[dict[str, Any]]:
    """A YAML's tree behind those that it extends; ``above`` are the files that led here."""
    missing = f"no such config file ({above[-1]} extends it)" if above else "no such config file"
    tree = yaml_file.read(path, f"{missing}; {config_hint()}")
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of config sections, got {type(tree).__name__}")
    _anchor_paths(tree, Config, anchor(path), f"{path}: ")
    if (base := tree.pop("extends", None)) is None:
        return [tree]
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: expected the path of one YAML, got {base!r}")
    below = Path(os.path.normpath(path.parent.resolve() / path_of(base, f"{path}: extends")))
    below = (below if below.is_file() else find_config(Path(base))).resolve()
    if below in (path.resolve(), *above):
        raise InputError(f"{path}: extends: {base} extends this file in turn")
    return [*_layers(below, (*above, path.resolve())), tree]


def replace(config: Config, section: str, values: Mapping[str, Any]) -> Config:
    """``config`` with some fields of one section changed, checked as a whole. InputError as in load."""
    return changed(config, {section: dict(values)})


def changed(config: Config, overrides: Mapping[str, Any]) -> Config:
    """``config`` with nested overrides, checked as a whole. InputError as in load."""
    return validated(Config, _laid_over(config.model_dump(), overrides), "")


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides with dotted or nested keys as nested ones, their relative paths taken from here."""
    tree = _nested(overrides)
    _anchor_paths(tree, Config, Path.cwd(), "")
    return tree


def _nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        part = _nested(value) if isinstance(value, Mapping) else value
        for name in reversed(str(key).split(".")):
            part = {name: part}
        tree = _merged(tree, part)
    return tree


WHICH = "the run's YAML, or a name in configs/"
"""Help of ``--config``."""


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> Config:
    """``--config FILE`` plus dotted overrides -> Config.

    ``--help`` lists the fields; if ``--config`` or ``--model.kind`` chooses a network, only that one's.
    InputError as in load, and for what would do nothing in a new run (``idle``).
    """
    path, overrides = command_line(argv, prog)
    layers = [*_layers(find_config(path)), overrides]
    config = _checked(layers, path, "the command line")
    idle.check(config, layers)
    return config


def command_line(argv: Sequence[str] | None = None, prog: str | None = None) -> tuple[Path, dict[str, Any]]:
    """``--config``'s file, and what a command line says over it, nested: ``load``'s arguments."""
    flags = _parse_flags(argv, prog)
    if flags.config is None:
        raise InputError(f"--config FILE is missing; {config_hint()}")
    return flags.config, nested(flags.overrides)


def parser(prog: str | None = None, argv: Sequence[str] = ()) -> Parser:
    """``--config`` and a flag per field; of the networks' those of the one that ``argv`` chooses, if any."""
    return _sourced(prog, argv)[0]


def _sourced(prog: str | None, argv: Sequence[str]) -> tuple[Parser, Any]:
    """The parser, and pydantic-settings' source of what it parses."""
    from pydantic import create_model
    from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

    class Flags(Config, BaseSettings):  # Config's fields as flags; validation happens after the merge
        model_config = SettingsConfigDict(extra="forbid", use_attribute_docstrings=True)

    asks = {"-h", "--help"} & set(argv)
    chosen: Any = _network(argv) if asks else None
    shown: Any = create_model("Flags", __base__=Flags, model=(chosen, ...)) if chosen else Flags
    parser = Parser(prog=prog, description="YAML config plus dotted overrides.", allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help=WHICH)
    parser.add_argument("--run_folder", type=Path, help="the same as --run, which torchrun reads as its own")
    # The deepspeed launcher appends it; the rank itself is read from the environment.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    source: Any = CliSettingsSource(
        shown, root_parser=parser, cli_parse_args=False, cli_avoid_json=True, cli_enforce_required=False
    )
    return parser, source


def _network(argv: Sequence[str]) -> type[BaseModel] | None:
    """The section of the network that a command line chooses, by ``--model.kind`` or by its ``--config``."""
    finder = Parser(add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--model.kind", dest="kind")
    given, _ = finder.parse_known_args(argv)
    if given.kind is None and given.config is not None:
        model = _flat(_layers(find_config(given.config))).get("model")
        given.kind = model.get("kind") if isinstance(model, dict) else None
    sections = sections_of(Config.model_fields["model"].annotation)
    return next((section for section in sections if given.kind in kinds_of(section)), None)


def _parse_flags(argv: Sequence[str] | None, prog: str | None) -> _Flags:
    given = sys.argv[1:] if argv is None else argv
    parser, source = _sourced(prog, given)
    known, unknown = parser.parse_known_args(given)
    if unknown:
        flag = unknown[0].split("=")[0]
        names = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all"
        raise InputError(f"unknown argument {flag!r:.200}; {hint}")
    try:
        overrides = source(parsed_args=known)()
    except (ValueError, RecursionError) as error:  # pydantic-settings' own are ValueErrors
        what = str(error).replace(' from source "CliSettingsSource"', "")
        why = str(error.__cause__ or "")
        line = f"command line: {what}" + f": {why}" * (why not in what)
        raise InputError(line + _json_of(vars(known))) from error
    if known.run_folder is not None:
        if "run" in overrides:
            raise InputError("--run and --run_folder are one setting: give one of them")
        overrides["run"] = known.run_folder
    return _Flags(known.config, {k: v for k, v in overrides.items() if k in Config.model_fields})


def _json_of(given: Mapping[str, Any]) -> str:
    """The end of an error that says, of a flag whose value is YAML and no JSON, that JSON; else nothing."""
    for name, values in given.items():
        for text in values if isinstance(values, list) else [values]:
            if not isinstance(text, str) or not text.startswith(("{", "[")):
                continue
            with contextlib.suppress(ValueError, RecursionError, InputError):
                tree = yaml_file.parse(text.encode(), name)
                if json.dumps(tree) != json.dumps(_json(text)):
                    return f"; in JSON: --{name} {shlex.quote(json.dumps(tree))}"
    return ""


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _laid_over(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` over ``base``. A run's length by one of its two settings takes the place of the other's."""
    merged, given = _merged(base, over), over.get("train")
    if isinstance(given, Mapping) and isinstance(base.get("train"), Mapping):
        for one, other in (LENGTHS, LENGTHS[::-1]):
            if given.get(one) and other not in given:
                merged["train"].pop(other, None)
    return merged


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _anchor_paths(tree: dict[str, Any], section: type[BaseModel], folder: Path, where: str) -> None:
    """Make relative paths absolute, in place: a YAML's from its folder, the command line's from here."""
    for name, field in section.model_fields.items():
        value, kinds = tree.get(name), (field.annotation, *get_args(field.annotation))
        if isinstance(value, str | Path) and Path in kinds:
            if "://" in str(value):
                if str not in kinds:
                    raise InputError(f"{where}{name}: a path is wanted, not a URL, got {str(value)!r:.200}")
                continue
            if name == "init_from" and str(value).startswith(PRETRAINED):
                continue
            tree[name] = os.path.normpath(folder.resolve() / path_of(value, where + name))
        elif isinstance(value, dict):
            for kind in sections_of(field.annotation):
                _anchor_paths(value, kind, folder, f"{where}{name}.")
