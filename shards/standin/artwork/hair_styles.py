"""The 111 hair styles: which top, which hairline and what hangs behind. Plain data; imports no skia.

A style is put together from three parts that are each drawn elsewhere: ``top`` is the outer edge over the
skull (``hair.TOPS``), ``line`` the edge along the forehead (``hair.LINES``) and ``back`` what is drawn
behind the head (``hair_back.BACKS``). Every combination occurs once, so every two styles differ.

Every style outside ``BALD_HAIR`` covers the crown (``geometry.CROWN_PLACES``) with its plain colour.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HairStyle:
    """One variant of ``hair``."""

    top: str
    line: str
    back: str = "none"


def _family(top: str, lines: str, back: str = "none") -> list[HairStyle]:
    return [HairStyle(top, line, back) for line in lines.split()]


HAIR_STYLES: tuple[HairStyle, ...] = (
    # Short: nothing behind the head.
    *_family("cap", "round flat peak swept_left swept_right receding"),
    *_family("crop", "round flat peak receding choppy"),
    *_family("spiky", "round flat peak choppy swept_left"),
    *_family("quiff", "round flat peak receding"),
    *_family("pompadour", "round flat peak"),
    *_family("flattop", "round flat receding"),
    *_family("wave", "round flat swept_left choppy"),
    *_family("curly", "round flat peak scallop"),
    *_family("messy", "round swept_left swept_right choppy bangs"),
    *_family("parted", "round swept_left swept_right curtain"),
    *_family("bowl", "bangs choppy curtain"),
    *_family("mohawk", "flat"),
    *_family("mohawk_spiky", "flat"),
    *_family("mohawk_curly", "flat"),
    # Big round hair.
    *_family("curly", "round peak scallop", "afro"),
    *_family("curly", "round scallop", "afro_big"),
    # To the jaw.
    *_family("cap", "round swept_left choppy bangs curtain", "bob"),
    *_family("parted", "swept_right bangs curtain", "bob_flipped"),
    *_family("messy", "round choppy curtain", "shag"),
    # Long.
    *_family("cap", "round swept_left bangs", "long_straight"),
    *_family("parted", "swept_right curtain", "long_straight"),
    *_family("cap", "round swept_left bangs", "long_wavy"),
    *_family("wave", "choppy curtain", "long_wavy"),
    *_family("curly", "round peak scallop curtain", "long_curly"),
    *_family("cap", "round flat peak", "locs"),
    # Put up.
    *_family("cap", "round flat peak swept_left bangs", "bun"),
    *_family("cap", "round bangs curtain", "two_buns"),
    *_family("wave", "round swept_left bangs", "ponytail_side"),
    *_family("cap", "round swept_right bangs", "ponytail_high"),
    *_family("cap", "round bangs curtain", "pigtails"),
    *_family("cap", "round swept_left bangs", "bubble_braids"),
    *_family("parted", "round choppy curtain", "braids"),
    *_family("cap", "round swept_left", "braid_side"),
    # No hair on the crown.
    HairStyle("bald", "none"),
    HairStyle("bald_shine", "none"),
    HairStyle("shaven", "none"),
    HairStyle("horseshoe", "none"),
)

BALD_HAIR: frozenset[int] = frozenset(
    index for index, style in enumerate(HAIR_STYLES) if style.line == "none"
)
