"""The headline: fidelity over a set of attributes that is fixed for each data set.

A mean over what a judge happens to read well rises as the judge gets worse. So the set is decided once, by
the schema, and where the judge is too weak for a member there is no headline, nor another mean in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from diffbase.cli import InputError
from diffbase.line import printable
from diffbase.page.kit import percent
from shards.schema import CARTOON_SET, Attribute

READABLE = 0.9
"""The least share of held-out images in which a judge must read an attribute right, to judge others by it."""
NAMED = 6
"""Most attributes that a line names."""

SETS: dict[tuple[Attribute, ...], tuple[str, ...]] = {
    # What shows at 64 x 64 and is read in nine images of ten: docs/quality.md. The other six are the eyes'
    # angle and the brows, which differ by less than that size shows.
    CARTOON_SET: (
        "chin_length", "face_shape", "facial_hair", "hair", "face_color", "hair_color",
        "glasses", "glasses_color", "eye_lid", "eye_color", "eye_lashes", "eye_slant",
    ),
}  # fmt: skip
"""Data sets whose set is fixed; of any other it is every attribute with more than one variant."""


def fixed(schema: Sequence[Attribute]) -> tuple[str, ...]:
    """The attributes of the headline of a data set with this schema, where nobody names others."""
    return SETS.get(tuple(schema)) or tuple(a.name for a in schema if a.variants > 1)


def chosen(schema: Sequence[Attribute], names: str | None) -> tuple[str, ...]:
    """``names`` ("a,b") as a set, in the schema's order; ``fixed`` for None.

    InputError for a name that is not there, twice there, or of an attribute with one variant.
    """
    if names is None:
        return fixed(schema)
    wanted, allowed = names.split(","), [a.name for a in schema if a.variants > 1]
    if (wrong := next((name for name in wanted if name not in allowed), None)) is not None:
        raise InputError(
            f"--headline: no attribute {wrong!r} to judge by; allowed are {printable(', '.join(allowed))}"
        )
    if len(set(wanted)) < len(wanted):
        raise InputError(f"--headline {names}: an attribute twice")
    return tuple(name for name in allowed if name in wanted)


def refusal(
    names: Sequence[str], accuracy: Mapping[str, Mapping[str, float | None]], epochs: int
) -> str | None:
    """Why a judge of this ``accuracy`` on held-out images gives no headline over ``names``: a line, or None.

    ``epochs``: what it learned for; the line says how to train a better one.
    """
    if not names:
        return "no headline fidelity: no attribute has more than one variant, so there is nothing to read"
    shares = {name: accuracy[name]["share"] for name in names}
    weak = [
        f"{name} in {percent(share)}" if share is not None else f"{name} (in none that shows it)"
        for name, share in shares.items()
        if share is None or not share >= READABLE  # nan, in older records
    ]
    if not weak:
        return None
    return (
        f"no headline fidelity (over {len(names)}): the judge reads {listed(weak)} of the held-out images "
        f"right, and {READABLE:.0%} is the least. Larger or more images may help, or: "
        f"python -m diffcore.evaluation.train_judge DATA --epochs {2 * epochs}"
    )


def title(names: Sequence[str], schema: Sequence[Attribute]) -> str:
    """How many attributes the headline is over, and by whose choice: what stands next to the figure."""
    if not names:
        return "no attributes"
    several = sum(a.variants > 1 for a in schema)
    said = f"{len(names)} of {several} attributes" if len(names) < several else f"all {several} attributes"
    own = set(names) != set(fixed(schema))
    return ("one attribute, all there is" if several == 1 else said) + (" (a set of its own)" if own else "")


def listed(words: Sequence[str]) -> str:
    """Names for a line, not more than a reader takes in."""
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return printable(", ".join(words[:NAMED])) + more
