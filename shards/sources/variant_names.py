"""Names of variants that a set brings along: ``render.json``, ``{"names": {"eye_lid": ["open", ...], ...}}``.

Google's Cartoon Set has none; the stand-in of ``shards.render`` does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from pydantic import AfterValidator, BaseModel, Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file
from shards.schema import ATTRIBUTES_CAP, CARTOON_SET, NAME_CAP, VARIANTS_CAP, Attribute
from shards.sources.base import NAMES_CAP


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name with characters that cannot be printed")
    return name


_Name = Annotated[str, Field(min_length=1, max_length=NAME_CAP), AfterValidator(_printable)]


class _File(BaseModel):
    names: dict[_Name, Annotated[tuple[_Name, ...], Field(max_length=VARIANTS_CAP)]] = Field(
        default={}, max_length=ATTRIBUTES_CAP
    )


def named(data: bytes, where: str) -> tuple[Attribute, ...]:
    """Cartoon Set's schema with the names in ``data``, a file of that form; InputError names ``where``."""
    if len(data) > NAMES_CAP:
        raise InputError(f"{where}: {len(data)} bytes; at most {NAMES_CAP} are allowed")
    names = validated(_File, json_file.parse(data, where), where).names
    for attribute in CARTOON_SET:
        given = names.get(attribute.name, ())
        if given and not len(set(given)) == len(given) == attribute.variants:
            raise InputError(f"{where}: names.{attribute.name}: {attribute.variants} different names wanted")
    return tuple(replace(a, names=names.get(a.name, ())) for a in CARTOON_SET)
