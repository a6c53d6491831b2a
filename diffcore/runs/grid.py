"""A grid of images that were asked for, and the record of every cell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import write_json
from diffbase.page import pictures
from diffcore.config.samplers import shown_steps
from diffcore.config.tree import Sampling
from diffcore.runs.draw import choose_labels
from diffcore.runs.model import TrainedModel
from diffcore.runs.sampling import place_of, some_of, told
from shards.schema import Attribute


@dataclass(frozen=True)
class Row:
    """Images of one network under one condition."""

    name: str
    """What sets it apart from the other rows."""
    weights: str
    """ema or raw."""
    model: TrainedModel
    guidance: float
    wanted: Mapping[str, int]
    """Variants by attribute; what is not in it is at random, the same in every row."""


def rows_of(
    models: Mapping[str, TrainedModel],
    guidances: Sequence[float],
    wanted: Mapping[str, int],
    each: str | None,
) -> list[Row]:
    """A row for each of ``models`` (by their weights: ema, raw) at each of ``guidances``.

    ``each``: one more time for each variant of that attribute. InputError where there is none of that name,
    or it is ``wanted`` already.
    """
    schema = next(iter(models.values())).schema
    if each is None:
        conditions = {"": dict(wanted)}
    else:
        place = place_of(each, [attribute.name for attribute in schema])
        if place is None:
            raise InputError(f"--each {each}: allowed are {some_of([a.name for a in schema]) or 'none'}")
        one = schema[place]
        if one.name in wanted:
            raise InputError(f"--each {each}: --set gives it already")
        conditions = {
            asked([one], {one.name: variant}): {**wanted, one.name: variant}
            for variant in range(one.variants)
        }
    several = len(models) * len(guidances) > 1
    return [
        Row(
            ", ".join([condition] * bool(condition) + [f"{weights}, guidance {scale:g}"] * several),
            weights, model, scale, variants,
        )
        for condition, variants in conditions.items()
        for weights, model in models.items()
        for scale in guidances
    ]  # fmt: skip


def asked(schema: Sequence[Attribute], wanted: Mapping[str, int]) -> str:
    """What was asked for, for a caption: ``hair_color=auburn glasses=none``.

    A variant whose name the caption's font lacks is told by its number.
    """
    names = {attribute.name: attribute for attribute in schema}
    said = {name: names[name].said(variant) for name, variant in wanted.items()}
    return "  ".join(
        f"{name}={text if pictures.drawable(text) == text else wanted[name]}" for name, text in said.items()
    )


def write_grid(rows: Sequence[Row], sampling: Sampling, seed: int, out: Path, about: dict[str, Any]) -> int:
    """Draw ``sampling.count`` images a row; returns how many in all.

    One row is wrapped into a grid; several stand one above the other, of the same noise, with their names.
    The caption says what was asked for in all of them, and how it was drawn. Writes ``out`` (a PNG) and,
    beside it, a JSON with ``about``, the settings and every cell's labels.
    """
    model, several = rows[0].model, len(rows) > 1
    columns = sampling.count if several else min(pictures.COLUMNS, sampling.count)
    images: list[np.ndarray] = []
    cells: list[dict[str, Any]] = []
    with cli.progress_bar("drawing") as report:

        def drawn(done: int) -> None:
            report(len(cells) + done, len(rows) * sampling.count)

        for row in rows:
            labels_BA = choose_labels(model.schema, dict(row.wanted), seed, sampling.count)
            settings = sampling.model_copy(update={"guidance": row.guidance})
            images.extend(row.model.draw(labels_BA, settings, seed, report=drawn))
            for labels in labels_BA.tolist():
                place = {"row": len(cells) // columns, "column": len(cells) % columns}
                how = {"weights": row.weights, "guidance": row.guidance}
                cells.append({**place, **how, **told(model.schema, labels)})
    everywhere = {k: v for k, v in rows[0].wanted.items() if all(row.wanted.get(k) == v for row in rows)}
    tiled = pictures.grid(np.stack(images), columns)
    if several:
        tiled = pictures.with_row_names(tiled, [row.name for row in rows])
    scales = ", ".join(dict.fromkeys(f"{row.guidance:g}" for row in rows))
    steps = shown_steps(sampling.sampler, sampling.steps)
    drawn_by = f"step {model.step}, {sampling.sampler} {steps} steps, guidance {scales}, seed {seed}"
    rest = "as each row says, the rest at random" if rows[0].wanted else "nothing asked for: all at random"
    wishes = asked(model.schema, everywhere) or rest
    pictures.save_png(pictures.with_caption(tiled, [wishes, drawn_by]), out)
    record = sampling.model_dump(mode="json", exclude={"every", "guidance"})
    write_json(out.with_suffix(".json"), {**about, "seed": seed, "set": everywhere, **record, "cells": cells})
    return len(images)
