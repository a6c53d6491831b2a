"""The colours of the avatars, as 8-bit RGB, and the mixes derived from them. Imports no skia.

Every two colours of a palette are kept apart (see ``tests/unit/shards/standin/test_palette.py``), because
``shards.standin.colors`` reads them back from small, generated, slightly noisy pictures.
"""

from __future__ import annotations

RGB = tuple[int, int, int]

FACE: tuple[RGB, ...] = (
    (252, 232, 224),
    (248, 208, 190),
    (238, 204, 162),
    (226, 172, 148),
    (216, 172, 119),
    (194, 138, 108),
    (180, 128, 83),
    (152, 102, 78),
    (132, 86, 54),
    (98, 64, 50),
    (66, 42, 36),
)

HAIR: tuple[RGB, ...] = (
    (27, 21, 22),
    (64, 42, 34),
    (102, 66, 44),
    (146, 74, 44),
    (206, 106, 42),
    (176, 134, 88),
    (250, 218, 140),
    (138, 154, 166),
    (228, 230, 234),
    (222, 112, 152),
)

EYES: tuple[RGB, ...] = (
    (72, 44, 26),
    (168, 112, 40),
    (104, 148, 62),
    (58, 128, 196),
    (152, 166, 170),
)

GLASSES: tuple[RGB, ...] = (
    (24, 24, 28),
    (250, 246, 238),
    (206, 44, 48),
    (40, 92, 200),
    (226, 168, 38),
    (44, 150, 100),
    (226, 120, 178),
)

INK: RGB = (18, 14, 14)
WHITE: RGB = (255, 255, 255)


def mix(a: RGB, b: RGB, share_of_b: float) -> RGB:
    """Linear mix of two colours: ``share_of_b`` 0 gives a, 1 gives b."""
    r, g, b_ = (round(x + (y - x) * share_of_b) for x, y in zip(a, b, strict=True))
    return (r, g, b_)


def outline_of(hair: RGB) -> RGB:
    """The line around hair: a darker tone of the hair itself."""
    return mix(hair, (6, 4, 4), 0.54)


def highlight_of(hair: RGB) -> RGB:
    """Strands of light on hair: paler than the hair; on hair that is nearly white, a shade darker."""
    return mix(hair, (60, 66, 80), 0.22) if min(hair) > 215 else mix(hair, WHITE, 0.36)


def brow_of(hair: RGB) -> RGB:
    """Brows are hair, but darker."""
    return mix(hair, (6, 4, 4), 0.36)
