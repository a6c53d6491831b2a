"""Every page and drawing is made of the macros of ``kit.j2``, which escape whatever they are given."""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, cast

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

Html = Markup
"""Text that is escaped already."""

# Neither XML nor UTF-8 can hold these, but the name of a folder can.
UNWRITABLE = [*range(9), 11, 12, *range(14, 32), *range(0xD800, 0xE000), 0xFFFE, 0xFFFF]
_REPLACED = dict.fromkeys(UNWRITABLE, "\N{REPLACEMENT CHARACTER}")

environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: value.translate(_REPLACED) if isinstance(value, str) else value,
)
environment.filters["number"] = format


class _Macros(Protocol):
    def __getattr__(self, name: str) -> Callable[..., Html]: ...


html = cast(_Macros, environment.get_template("kit.j2").module)
"""The macros of ``kit.j2`` by their names."""


def page(title: str, parts: Sequence[Html], *scripts: str) -> Html:
    """A whole page with scripts of this kit, by the names of their files; it runs no others."""
    texts = [environment.get_template(name).render() for name in scripts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
    allowed = " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"
    return html.page(title, parts, [Markup(text) for text in texts], allowed)  # ours, not data


def percent(share: float, digits: int = 1) -> str:
    """A share in per cent; a dash for NaN, which was not measured."""
    return "-" if math.isnan(share) else f"{100 * share:.{digits}f} %"
