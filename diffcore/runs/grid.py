"""A grid of images that were asked for, and the record of every cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffbase.files import write_json
from diffbase.page import pictures
from diffcore.config.tree import Sampling
from diffcore.runs.draw import choose_labels
from diffcore.runs.model import TrainedModel
from diffcore.runs.sampling import told


def write_grid(
    rows: Sequence[tuple[str, TrainedModel, float]],
    sampling: Sampling,
    wanted: dict[str, int],
    seed: int,
    out: Path,
    about: dict[str, Any],
) -> int:
    """Draw ``sampling.count`` images per row of (weights, their model, guidance scale); returns how many.

    One row is wrapped into a grid; several stand one above the other, of the same labels and noise, with
    their names. Writes ``out`` (a PNG) and, beside it, a JSON with ``about``, the settings and every cell's
    labels.
    """
    model, several = rows[0][1], len(rows) > 1
    labels_BA = choose_labels(model.schema, wanted, seed, sampling.count)
    columns = sampling.count if several else min(pictures.COLUMNS, sampling.count)
    images: list[np.ndarray] = []
    cells: list[dict[str, Any]] = []
    for weights, network, scale in rows:
        images.extend(network.draw(labels_BA, sampling.model_copy(update={"guidance": scale}), seed))
        for row in labels_BA.tolist():
            place = {"row": len(cells) // columns, "column": len(cells) % columns}
            cells.append({**place, "weights": weights, "guidance": scale, **told(model.schema, row)})
    if several:
        tiled = pictures.grid(np.stack(images), columns)
        named = pictures.with_row_names(tiled, [f"{w}, guidance {scale:g}" for w, _, scale in rows])
        pictures.save_png(named, out)
    else:
        pictures.save_grid(np.stack(images), out)
    settings = sampling.model_dump(mode="json", exclude={"every", "guidance"})
    write_json(out.with_suffix(".json"), {**about, "seed": seed, "set": wanted, **settings, "cells": cells})
    return len(images)
