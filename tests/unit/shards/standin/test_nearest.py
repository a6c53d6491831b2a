"""Reading an image by the drawing that it is nearest to."""

from __future__ import annotations

import numpy as np
import pytest

from shards.schema import CARTOON_SET
from shards.standin import nearest
from shards.standin.files import labels_of

pytestmark = pytest.mark.draws


def test_an_avatar_is_read_as_what_it_is_and_as_what_was_changed_in_it() -> None:
    labels = labels_of(3, 0) | {"hair": 40, "glasses": 2, "facial_hair": 4}
    asked_A = np.array([labels[a.name] for a in CARTOON_SET])
    other = labels | {"hair_color": (labels["hair_color"] + 3) % 10}
    rng = np.random.default_rng(0)
    images = np.stack([nearest.look(labels, 32), nearest.look(other, 32)]).astype(np.float64)
    noisy = np.clip(images + rng.normal(0, 10, images.shape), 0, 255).astype(np.uint8)
    found_NA = nearest.read(noisy, np.stack([asked_A, asked_A]))
    names = [a.name for a in CARTOON_SET]
    large = [names.index(name) for name in ("hair", "glasses", "facial_hair", "face_color")]
    assert (found_NA[:, large] == asked_A[large]).all()
    column = names.index("hair_color")
    assert list(found_NA[:, column]) == [labels["hair_color"], other["hair_color"]]


def test_of_drawings_that_are_alike_the_asked_one_counts() -> None:
    labels = labels_of(3, 1) | {"glasses": 11}  # none, so their colour cannot be seen
    asked_A = np.array([labels[a.name] for a in CARTOON_SET])
    found_NA = nearest.read(nearest.look(labels, 64)[None], asked_A[None])
    assert list(found_NA[0]) == list(asked_A)
