"""Which attributes of an image can be seen at all: some hide others, and nobody is blamed for those.

Known for the Cartoon Set's schema as the stand-in draws it: a bald head shows no hair colour, no glasses show
no glasses' colour. Where nobody knows what hides it, nobody knows whether it can be seen: then it counts as
hidden. Any other schema hides nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from shards.schema import CARTOON_SET, UNKNOWN, Attribute
from shards.standin.artwork import BALD_HAIR

NO_GLASSES = 11

# Attribute -> (the attribute that hides it, with which of its variants).
HIDDEN_BY: dict[str, tuple[str, frozenset[int]]] = {
    "hair_color": ("hair", frozenset(BALD_HAIR)),
    "glasses_color": ("glasses", frozenset({NO_GLASSES})),
}


def visible(schema: Sequence[Attribute], labels_NA: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether each label of each image can be seen in it: bool [N, A] for labels [N, A]."""
    seen_NA = np.ones(labels_NA.shape, bool)
    if tuple(schema) == CARTOON_SET:
        columns = {attribute.name: column for column, attribute in enumerate(schema)}
        for name, (by, variants) in HIDDEN_BY.items():
            seen_NA[:, columns[name]] = ~np.isin(labels_NA[:, columns[by]], [*variants, UNKNOWN])
    return seen_NA
