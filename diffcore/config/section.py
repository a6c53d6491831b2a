"""What the config's sections share. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict

T = TypeVar("T")
IDENTITY = object()
Identity = Annotated[T, IDENTITY]
"""Type of a field, or of a section with all its fields, that makes a run the experiment it is: a run folder
is only resumed with the same value."""


class Section(BaseModel):
    """A part of the config: frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

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


def flatten(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mapping -> (dotted key, leaf) pairs."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
