"""Captions in a picture: within its width, whole, and never a box for a character that the font lacks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ImageFont

from diffbase.page import pictures

FONT = ImageFont.load_default(pictures.SIZE)
ANY = st.text(st.characters(exclude_categories=()))


@given(ANY)
def test_what_is_drawn_is_in_the_font(text: str) -> None:
    shown = pictures.drawable(text)
    box = FONT.getmask("\uffff")
    for character in set(shown) - {" "}:
        drawn = FONT.getmask(character)
        assert character.isprintable() and 0 not in drawn.size
        assert (drawn.size, bytes(drawn)) != (box.size, bytes(box))
    assert pictures.drawable(shown) == shown  # an escape is drawable itself


def test_plain_names_stay_and_others_are_escaped() -> None:
    plain = "".join(map(chr, range(0x20, 0x7F)))
    assert pictures.drawable(plain) == plain
    assert pictures.drawable("Цв=й") == "\\u0426\\u0432=\\u0439"
    assert pictures.drawable("a\nb\ufe0f\U0001f600") == "a\\nb\\ufe0f\\U0001f600"


@given(st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E)), st.integers(20, 300))
def test_wrapped_rows_fit_and_lose_nothing_but_spaces(line: str, width: int) -> None:
    rows = pictures._wrapped(line, FONT, width)
    assert all(FONT.getlength(row) <= width - 2 * pictures.MARGIN or len(row) == 1 for row in rows)
    assert "".join(rows).replace(" ", "") == line.replace(" ", "")


@pytest.mark.parametrize("width", [8, 100, 900])
@pytest.mark.parametrize("line", ["", "hair_color=auburn  glasses=none", "x" * 200, "Цвет=\ud800"])
def test_a_caption_stands_above_its_picture(line: str, width: int) -> None:
    image = np.full((5, width, 3), 40, np.uint8)
    named = pictures.with_caption(image, [line, "step 1"])
    assert named.dtype == np.uint8 and named.shape[1:] == (width, 3) and (named[-5:] == 40).all()
    strip = named[:-5]
    assert (strip[[0, -1]] == 255).all()
    if width > 8:
        assert (strip < 60).any() == bool(line)  # black; what is below the first line is grey
