"""A Config from a YAML file and dotted overrides, and every mistake in them as one clear line.

pydantic-settings turns the config tree into ``--help`` and flags; pydantic checks what YAML and flags give
together. Relative paths in a YAML are relative to that YAML; on the command line, to the working directory.
``extends: other.yaml`` at a YAML's top takes that file's settings and changes what this one says.
Imports no torch.
"""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pydantic
import yaml
from pydantic import BaseModel

from diffbase.cli import InputError, Parser
from diffcore.config.models import Model
from diffcore.config.tree import Config


@dataclass(frozen=True)
class _Flags:
    config: Path | None
    overrides: dict[str, Any]


def load(path: Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Config from a YAML file and nested overrides. InputError with field, value and what is allowed."""
    tree = _merged(_read(path), overrides or {})
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {_explain(error)}") from error


def _read(path: Path, above: Sequence[Path] = ()) -> dict[str, Any]:
    """A YAML's tree over the one that it extends; ``above`` are the files that led here."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError):
        by = f" ({above[-1]} extends it)" if above else ""
        raise InputError(f"{path}: no such config file{by}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: expected a mapping of config sections, got {type(tree).__name__}")
    _anchor_paths(tree, Config, path.parent)
    if (base := tree.pop("extends", None)) is None:
        return tree
    if not isinstance(base, str):
        raise InputError(f"{path}: extends: expected the path of one YAML, got {base!r}")
    below = Path(os.path.normpath(path.parent.resolve() / Path(base).expanduser()))
    if below in (path.resolve(), *above):
        raise InputError(f"{path}: extends: {base} extends this file in turn")
    return _merged(_read(below, (*above, path.resolve())), tree)


def replace(config: Config, section: str, values: Mapping[str, Any]) -> Config:
    """``config`` with some fields of one section changed, checked as a whole. InputError as in load."""
    tree = _merged(config.model_dump(), {section: dict(values)})
    try:
        return Config.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(_explain(error)) from error


def parse(argv: Sequence[str] | None = None, prog: str | None = None) -> Config:
    """``--config FILE`` plus dotted overrides -> Config. ``--help`` lists every field."""
    flags = _parse_flags(argv, prog)
    if flags.config is None:
        raise InputError("--config FILE is missing; examples are in configs/")
    _anchor_paths(flags.overrides, Config, Path.cwd())
    return load(flags.config, flags.overrides)


def _parse_flags(argv: Sequence[str] | None, prog: str | None) -> _Flags:
    from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

    class Flags(Config, BaseSettings):  # Config's fields as flags; validation happens after the merge
        model_config = SettingsConfigDict(extra="forbid", use_attribute_docstrings=True)

    parser = Parser(prog=prog, description="YAML config plus dotted overrides.", allow_abbrev=False)
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML with the run's config (configs/)")
    # The deepspeed launcher appends it; the rank itself is read from the environment.
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)
    source: Any = CliSettingsSource(
        Flags, root_parser=parser, cli_parse_args=False, cli_avoid_json=True, cli_enforce_required=False
    )
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        names = [option for action in parser._actions for option in action.option_strings]
        near = difflib.get_close_matches(flag, names, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else "--help lists all"
        raise InputError(f"unknown argument {unknown[0]!r}; {hint}")
    overrides = source(parsed_args=known)()
    return _Flags(known.config, {k: v for k, v in overrides.items() if k in Config.model_fields})


def _merged(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(base)
    for key, value in over.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


def _anchor_paths(tree: dict[str, Any], section: type[BaseModel], folder: Path) -> None:
    """Make relative paths absolute, in place: a YAML's from its folder, the command line's from here."""
    for name, field in section.model_fields.items():
        value, kinds = tree.get(name), (field.annotation, *get_args(field.annotation))
        if isinstance(value, str) and Path in kinds and "://" not in value:
            tree[name] = os.path.normpath(folder.resolve() / Path(value).expanduser())
        elif isinstance(value, dict):
            for kind in _sections(field.annotation):
                _anchor_paths(value, kind, folder)


def _explain(error: pydantic.ValidationError) -> str:
    """The first problem as one line: dotted field, what is wrong, what is allowed."""
    first, count = error.errors()[0], error.error_count()
    parent, names = _locate(first["loc"])
    field = ".".join(names)
    if first["type"].startswith("union_tag"):
        kinds = [kind for section in _sections(get_args(Model)[0]) for kind in _kinds(section)]
        text = f"{field}.kind must be one of {', '.join(kinds)}"
    elif first["type"] == "extra_forbidden" and parent is not None:
        allowed = list(parent.model_fields)
        near = difflib.get_close_matches(str(first["loc"][-1]), allowed, n=1)
        text = f"unknown key {field!r}"
        text += f" (did you mean {near[0]!r}?)" if near else ""
        text += f"; allowed here: {', '.join(allowed)}"
    elif first["type"] == "missing" and parent is not None:
        meaning = parent.model_fields[str(first["loc"][-1])].description
        text = f"key {field!r} is missing: {meaning or 'a section'}"
    else:
        text = f"{field}: " if field else ""
        text += first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], dict | BaseModel):
            text += f", got {first['input']!r}"
    return text + (f" (and {count - 1} more)" if count > 1 else "")


def _locate(path: Sequence[int | str]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section that holds the last part of an error's path, and the path as the user writes it.

    pydantic puts the chosen member of a union into the path (model.avatar.heads); a YAML does not.
    """
    section: type[BaseModel] | None = Config
    choices: list[type[BaseModel]] = []
    names: list[str] = []
    for i, part in enumerate(path):
        if len(choices) > 1 and (chosen := [c for c in choices if part in _kinds(c)]):
            section, choices = chosen[0], chosen
            continue
        names.append(str(part))
        if i == len(path) - 1:
            break
        field = section.model_fields.get(str(part)) if section else None
        choices = list(_sections(field.annotation)) if field else []
        section = choices[0] if choices else None
    return section, names


def _kinds(section: type[BaseModel]) -> tuple[Any, ...]:
    kind = section.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def _sections(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
