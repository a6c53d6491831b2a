"""The card beside a file of weights, NAME.json: where they come from, and what was measured with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from diffbase.explain import validated
from diffbase.formats import json_file
from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.runs.run_folder import DataRecord

Count = Annotated[int, Field(ge=0, le=2**53)]
MOST = 4 << 20
"""Bytes of a card."""


class Card(BaseModel):
    """What NAME.json says."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1] = 1
    about: Annotated[str, Field(max_length=10_000)] = ""
    """The data in words."""
    licence: Annotated[str, Field(max_length=1000)]
    data: DataRecord
    """The shards that it learned from: fingerprint, size and attributes."""
    recipe: dict[str, Any]
    """The run's whole config, its seed too, with names in the place of paths."""
    step: Count
    samples: Count
    """Images seen."""
    parameters: Count
    code: Annotated[str, Field(max_length=1000)]
    precision: Annotated[str, Field(max_length=100)]
    """Of the training."""
    dtype: Literal["bf16", "int8"]
    """Of the matrices in the file; vectors are fp32."""
    bytes: Count
    sha256: Annotated[str, Field(max_length=64)]
    """Of the file."""
    error: dict[str, float]
    """What is lost against fp32 weights: of ``images``, drawn with both, the ``mean`` and ``max`` difference
    of a pixel, of 255."""
    drawn: Annotated[list[float], Field(min_length=3, max_length=3)]
    """Mean red, green and blue of those images, drawn with the file, of 255: to check other machines by."""
    figures: dict[str, Any] = {}
    """Measured before: quality.json, colors.json."""

    def config(self, where: str) -> Config:
        """The run's config; its data's path is taken from the working directory. InputError if it is none."""
        return validated(Config, configure.nested(self.recipe), f"{where}: recipe")


def card_of(file: Path) -> Path:
    """Where the card of a file of weights lies."""
    return file.with_suffix(".json")


def read(file: Path) -> Card:
    """The card of a file of weights. InputError where there is none."""
    path = card_of(file)
    return validated(Card, json_file.read(path, f"no such file: the card of {file.name}", MOST), str(path))
