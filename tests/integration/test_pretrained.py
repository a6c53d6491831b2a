"""What ships draws what it is asked for as often as its card says, read without a judge."""

from __future__ import annotations

import math

import numpy as np
import pytest

import diffcore
from diffcore.evaluation.judging.headline import fixed
from diffcore.runs.draw import choose_labels
from diffcore.runs.pretrained import card, files
from shards.schema import CARTOON_SET
from shards.standin import nearest

SAMPLES, SEED = 24, 7
CALLS = 20


@pytest.mark.parametrize("name", ["small"])
def test_what_ships_draws_what_it_is_asked_for_as_often_as_its_card_says(name: str) -> None:
    told = card.read(files.FOLDER / f"{name}.safetensors").figures["by_drawing"]
    model = diffcore.load_model(f"pretrained:{name}", device="cpu")
    wishes_NA = choose_labels(model.schema, {}, SEED, SAMPLES)
    sampling = model.config.sampling.model_copy(update={"steps": CALLS})
    images = model.draw(wishes_NA, sampling, SEED)
    found_NA = nearest.read(images, wishes_NA.numpy())
    columns = [column for column, a in enumerate(CARTOON_SET) if a.name in fixed(CARTOON_SET)]
    hit_NA = (found_NA == wishes_NA.numpy())[:, columns]
    # An image's share of right attributes spreads by no more than one that is all right or all wrong.
    said = told["asked"]["headline"]
    chance = 3 * math.sqrt(said * (1 - said) / SAMPLES)
    assert hit_NA.mean() > said - chance
    shuffled = (found_NA == np.roll(wishes_NA.numpy(), 1, axis=0))[:, columns].mean()
    assert shuffled < 0.5 < said, "other wishes are not what it shows"
