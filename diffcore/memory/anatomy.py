"""anatomy.json as a schema (docs/memory.md says what its fields mean). Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.formats import json_file

SCHEMA = "diffcore.anatomy/1"
PARTS = ("run", "planned", "measured", "advice")

Size = Annotated[int, Field(ge=-(2**60), le=2**60)]
Count = Annotated[int, Field(ge=0, le=2**53)]
Name = Annotated[str, Field(max_length=1000)]
Words = Annotated[str, Field(max_length=100_000)]
Sizes = Annotated[dict[Name, Size], Field(max_length=100)]


class Part(BaseModel):
    """What all parts share: exact types, and further fields are let through unseen."""

    model_config = ConfigDict(strict=True, extra="ignore")


class About(Part):
    """The run's settings that memory depends on."""

    model: Name
    parameters: Count
    world: Count
    zero: Count
    precision: Name
    checkpointing: Name
    offload: Name
    micro_batch: Count
    accumulation: Count
    strategy: Name | None = None
    """How the ranks share the work, where that is not a ZeRO stage of a config."""
    name: Name | None = None
    """Of the run folder."""
    date: Name | None = None
    """When it was measured, as ISO 8601; a plan has none."""


class Moment(Part):
    """A moment of the step: bytes by category."""

    name: Name
    bytes: Sizes
    host: Size
    allocated: Size
    reserved: Size


class Layer(Part):
    """What a module leaves for backward."""

    name: Name
    bytes: Size


class Point(Part):
    """A point of the way through one step."""

    phase: Name
    bytes: Sizes


class Row(Part):
    """A row of the sum that makes the system's number."""

    name: Name
    bytes: Size
    source: Name


class Total(Part):
    """That number, and whose it is."""

    bytes: Size
    source: Name


class Phase(Part):
    """A part of the step, up to the event ``end``."""

    name: Name
    end: Count


class Lifetimes(Part):
    """Each tensor of the step: the numbers of its category and layer, its bytes, the events of its life.

    Events are counted from 1 on; 0 is before the step, and -1 (of the last column) that it is still there.
    """

    categories: Annotated[list[Name], Field(max_length=100)]
    layers: Annotated[list[Name], Field(max_length=100_000)]
    phases: Annotated[list[Phase], Field(min_length=1, max_length=1000)]
    tensors: Annotated[
        list[Annotated[list[Size], Field(min_length=5, max_length=5)]], Field(max_length=100_000)
    ]

    @model_validator(mode="after")
    def _make_sense(self) -> Self:
        last = self.phases[-1].end
        for number, (category, layer, size, born, died) in enumerate(self.tensors):
            named = 0 <= category < len(self.categories) and 0 <= layer < len(self.layers)
            if not named or size <= 0 or not 0 <= born <= last or not (died == -1 or born < died <= last):
                raise ValueError(f"tensor {number} is none of this step")
        return self


class Rank(Part):
    """A rank, planned or measured."""

    rank: Count
    device: Name
    capacity: Total | None = None
    """What the device has in all, or the machine where there is none."""
    lifetimes: Lifetimes | None = None
    """Of one rank of a report."""
    parameters: Annotated[int, Field(ge=1, le=2**53)]
    micro_batch: Count
    moments: Annotated[list[Moment], Field(min_length=1, max_length=1000)]
    layers: Annotated[list[Layer], Field(max_length=1_000_000)]
    timeline: Annotated[list[Point], Field(max_length=1_000_000)]
    closure: Annotated[list[Row], Field(max_length=1000)]
    total: Total | None = None
    notes: Annotated[list[Words], Field(max_length=1000)]


class Saving(Part):
    """A setting that takes less memory, alone."""

    setting: Name
    saves: Size
    share: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
    """Of the whole."""
    slower: Name
    """What it costs, in words."""


class Anatomy(Part):
    """The whole file."""

    schema_: Literal["diffcore.anatomy/1"] = Field(alias="schema")
    unit: Literal["bytes"] = "bytes"
    run: About
    planned: Annotated[list[Rank], Field(max_length=100_000)]
    measured: Annotated[list[Rank], Field(max_length=100_000)]
    advice: Annotated[list[Words], Field(max_length=1000)]
    savings: Annotated[list[Saving], Field(max_length=1000)] | None = None
    """What the advice is of, the most useful first."""


def load(path: Path) -> dict[str, Any]:
    """anatomy.json, or the one in a run folder. InputError if it is none or of another version."""
    file = path / "anatomy.json" if path.is_dir() else path
    tree = json_file.read(file)
    if not isinstance(tree, dict) or tree.get("schema") != SCHEMA:
        found = tree.get("schema") if isinstance(tree, dict) else type(tree).__name__
        raise InputError(f"{file}: schema {found!r:.200} is not {SCHEMA}")
    if missing := [name for name in PARTS if name not in tree]:
        raise InputError(f"{file}: no {' and no '.join(missing)} in it")
    told = validated(Anatomy, tree, str(file))
    if not (told.planned or told.measured):
        raise InputError(f"{file}: no rank in it, neither planned nor measured")
    return told.model_dump(by_alias=True, exclude_unset=True, exclude_none=True)
