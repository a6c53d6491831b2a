"""Labels as people say them: a variant's name or number, and back. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from diffbase.cli import InputError
from shards.schema import UNKNOWN, Attribute

SHOWN = 24
"""Names that an error lists."""


def parse_wanted(settings: Sequence[str], schema: Sequence[Attribute]) -> dict[str, int]:
    """``name=value`` strings -> {name: value}. InputError with what is allowed."""
    wanted: dict[str, int] = {}
    names = {a.name for a in schema}
    for setting in settings:
        cuts = [at for at, sign in enumerate(setting) if sign == "="]  # a name may have one in it
        cut = next((at for at in cuts if setting[:at] in names), cuts[0] if cuts else len(setting))
        try:
            wanted |= check_labels({setting[:cut]: setting[cut + 1 :]}, schema)
        except InputError as error:
            raise InputError(f"--set {setting}: {error}") from None
    return wanted


def check_labels(labels: Mapping[str, Any], schema: Sequence[Attribute]) -> dict[str, int]:
    """``labels`` by attribute, as plain numbers; see ``variant_of``.

    InputError, with what is allowed, for an unknown attribute or a variant that it does not have.
    """
    attributes = {a.name: a for a in schema}
    for name in labels:
        if name not in attributes:
            raise InputError(f"unknown attribute {name!r}; {_allowed(str(name), list(attributes))}")
    return {name: variant_of(attributes[name], value) for name, value in labels.items()}


def variant_of(attribute: Attribute, value: Any) -> int:
    """A variant by its name or number, as a number.

    A name counts before a number (classes may be called 2 and 10). Letters' case, spaces, ``-`` and ``_``
    need not match where only one name is left. ``unknown``, unless a variant is called so, is UNKNOWN.
    InputError, with what is allowed, for anything else.
    """
    name, most = attribute.name, attribute.variants - 1
    if isinstance(value, str):
        if value in attribute.names:
            return attribute.names.index(value)
        alike = [number for number, one in enumerate(attribute.names) if _plain(one) == _plain(value)]
        if len(alike) == 1:
            return alike[0]
        if value == "unknown":
            return UNKNOWN
        number = int(value) if value.isascii() and value.isdigit() and len(value) < 20 else None
    else:
        number = int(value) if isinstance(value, Integral) else None
    if number is not None and 0 <= number <= most:
        return number
    if attribute.names:
        raise InputError(
            f"{name} has no variant {value!r}; {_allowed(str(value), attribute.names)} (or 0 to {most})"
        )
    raise InputError(f"{name} must be a whole number, 0 to {most}, not {value!r}")


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", " ", name).strip().casefold()


def _allowed(given: str, names: Sequence[str]) -> str:
    """What may be given, and what is nearest to what was."""
    some = ", ".join(names[:SHOWN]) + f", ... ({len(names)} in all)" * (len(names) > SHOWN)
    plain = {_plain(name): name for name in names}
    near = difflib.get_close_matches(_plain(given)[:100], list(plain), 1)
    return f"allowed: {some or 'none'}" + (f"; nearest: {plain[near[0]]}" if near else "")


def spoken(schema: Sequence[Attribute], labels: Sequence[int]) -> str:
    """An image's labels for people: ``hair_color blond, eye_lid open``."""
    return ", ".join(f"{a.name} {a.said(v)}" for a, v in zip(schema, labels, strict=True))


def told(schema: Sequence[Attribute], labels: Sequence[int]) -> dict[str, dict[str, Any]]:
    """An image's labels for a JSON: ``attributes`` by number, and ``names`` of those that have any."""
    pairs = list(zip(schema, labels, strict=True))
    names = {a.name: a.said(v) for a, v in pairs if a.names or v == UNKNOWN}
    return {"attributes": {a.name: v for a, v in pairs}, **({"names": names} if names else {})}
