"""pydantic's errors as one line each: the dotted key, what is wrong, what is allowed."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

import pydantic
from pydantic import BaseModel, TypeAdapter

from diffbase.cli import InputError

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
WORDS = {
    "path_type": "expected a path",
    "model_type": "expected a mapping",
    "model_attributes_type": "expected a mapping",
}
"""What is said instead of pydantic's sentences that name classes."""


def validated(kind: type[M], tree: Any, where: str) -> M:
    """``tree`` as a ``kind``; the first mistake as an InputError of one line that begins with ``where``."""
    try:
        return kind.model_validate(tree)
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {explain(error, kind)}" if where else explain(error, kind)) from error


def checked(kind: type[T], tree: Any, where: str) -> T:
    """``tree`` as a dataclass or another type whose limits are ``Annotated``; errors as ``validated``'s."""
    annotated: Any = kind
    try:
        result: T = _adapter(annotated).validate_python(tree)
    except pydantic.ValidationError as error:
        raise InputError(f"{where}: {explain(error, BaseModel)}") from error
    return result


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def explain(error: pydantic.ValidationError, root: type[BaseModel]) -> str:
    """The first problem with a ``root``, and how many more there are."""
    first, count = error.errors()[0], error.error_count()
    parent, names = _locate(first["loc"], root)
    field = ".".join(f"{name:.100}" for name in names)
    # A file that a program wrote is not corrected by hand: only documented sections name what is allowed.
    by_hand = parent is not None and bool(parent.model_config.get("use_attribute_docstrings"))
    if first["type"].startswith("union_tag"):
        text = f"{field}.kind must be one of {', '.join(_choices(parent, names[-1]))}"
    elif parent and by_hand and first["type"] == "extra_forbidden":
        allowed = list(parent.model_fields)
        near = difflib.get_close_matches(names[-1][:100], allowed, n=1)
        text = f"unknown key {field!r}"
        text += f" (did you mean {near[0]!r}?)" if near else ""
        text += f"; allowed here: {', '.join(allowed)}"
    elif parent and by_hand and first["type"] == "missing":
        known = parent.model_fields.get(str(first["loc"][-1]))
        meaning = known.description if known else None
        text = f"key {field!r} is missing: {meaning or 'a section'}"
    else:
        text = f"{field}: " if field else ""
        text += WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ")
        if not isinstance(first["input"], dict | BaseModel):
            text += f", got {_given(first['input'])}"
    return text + (f" (and {count - 1} more)" if count > 1 else "")


def _given(value: Any) -> str:
    try:
        return f"{value!r:.200}"
    except ValueError:  # a number of more digits than Python writes
        return f"a {type(value).__name__} of too many digits"


def _locate(path: Sequence[int | str], root: type[BaseModel]) -> tuple[type[BaseModel] | None, list[str]]:
    """The section that holds the last part of an error's path, and the path as the user writes it.

    pydantic puts the chosen member of a union into the path (model.avatar.heads); a YAML does not.
    """
    section: type[BaseModel] | None = root
    choices: list[type[BaseModel]] = []
    names: list[str] = []
    for i, part in enumerate(path):
        if len(choices) > 1 and (chosen := [c for c in choices if part in kinds_of(c)]):
            section, choices = chosen[0], chosen
            continue
        names.append(str(part))
        if i == len(path) - 1:
            break
        if isinstance(part, int):  # a place in a list of sections
            continue
        field = section.model_fields.get(str(part)) if section else None
        choices = list(sections_of(field.annotation)) if field else []
        section = choices[0] if choices else None
    return section, names


def _choices(parent: type[BaseModel] | None, name: str) -> list[str]:
    """The kinds that a tagged union's field may have."""
    field = parent.model_fields.get(name) if parent else None
    sections = sections_of(field.annotation) if field else ()
    return [str(kind) for section in sections for kind in kinds_of(section)]


def kinds_of(section: type[BaseModel]) -> tuple[Any, ...]:
    """The allowed values of a section's ``kind``; none where it has no such field."""
    kind = section.model_fields.get("kind")
    return get_args(kind.annotation) if kind else ()


def sections_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections that a field may hold."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind
