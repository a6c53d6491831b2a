"""What an image shows, read without a network: the drawing that it is nearest to.

One attribute after the other the avatar is drawn with every variant, and the one whose drawing has the
least squared distance is kept (coordinate descent), from what was asked for until nothing changes. A judge
that nobody trained, and right in all that an image shows; slow, since each pass takes as many drawings as
there are variants in all (217 for Cartoon Set).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from shards.codec.encode import prepare
from shards.schema import CARTOON_SET
from shards.standin.artwork import avatar
from shards.standin.artwork.geometry import CROP

PASSES = 3
"""At most, over all attributes."""


def look(labels: dict[str, int], size: int, crop: int = CROP) -> NDArray[np.uint8]:
    """The avatar as it is packed: uint8 [size, size, 3], of a square of ``crop`` pixels in the middle."""
    pixels: NDArray[np.uint8] = prepare(Image.fromarray(avatar.render(labels)), "avatar", crop, size)
    return pixels


def read(images_NSSC: NDArray[np.uint8], asked_NA: NDArray[np.int64], crop: int = CROP) -> NDArray[np.int64]:
    """The variant of each attribute, [N, A], in images that were asked for with ``asked_NA``.

    Of several that are drawn alike (what another attribute hides), the asked one.
    """
    found_NA = asked_NA.copy()
    for image_SSC, found_A in zip(images_NSSC.astype(np.int64), found_NA, strict=True):
        for _ in range(PASSES):
            before_A = found_A.copy()
            for column, a in enumerate(CARTOON_SET):
                labels = {b.name: int(v) for b, v in zip(CARTOON_SET, found_A, strict=True)}
                looks = (look(labels | {a.name: v}, len(image_SSC), crop) for v in range(a.variants))
                distances = np.array([np.square(shown - image_SSC).sum() for shown in looks])
                if distances[found_A[column]] > distances.min():
                    found_A[column] = distances.argmin()
            if (found_A == before_A).all():
                break
    return found_NA
