"""What the config's sections share. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import to_jsonable_python

from diffbase import line

T = TypeVar("T")
IDENTITY = object()
Identity = Annotated[T, IDENTITY]
"""Type of a field, or of a section with all its fields, that makes a run the experiment it is: a run folder
is only resumed with the same value."""


class Section(BaseModel):
    """A part of the config: frozen, and an unknown key is an error.

    Every text, path and name in it is one line without control characters, every whole number has 63 bits at
    most (diffbase.line): what is written here ends in shells, headers, file names and tensors.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @model_validator(mode="after")
    def _holds_lines(self) -> Self:
        for name in type(self).model_fields:
            for problem in line.faults(name, getattr(self, name)):
                raise ValueError(problem)
        return self

    def identity(self) -> dict[str, Any]:
        """The fields of this section and those in it that are declared ``Identity``, as flat dotted keys."""
        tree = self.model_dump(mode="json")
        found: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if IDENTITY in field.metadata:
                found |= dict(flatten({name: tree[name]}))
            elif isinstance(value, Section):
                found |= dict(flatten(value.identity(), f"{name}."))
        return found

    def usual(self, key: str) -> Any:
        """The default of the field with that dotted key, as ``identity`` tells it; None where it has none."""
        name, _, rest = key.partition(".")
        field, value = type(self).model_fields.get(name), getattr(self, name, None)
        if rest:
            return value.usual(rest) if isinstance(value, Section) else None
        return None if field is None or field.is_required() else to_jsonable_python(field.get_default())


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mapping -> (dotted key, leaf) pairs."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
