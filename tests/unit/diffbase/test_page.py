"""The kit of pages: no data break out of a macro, nothing is left out unseen, and drawings are XML."""

from __future__ import annotations

import re
from collections.abc import Callable
from xml.etree import ElementTree

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.page import svg
from diffbase.page.kit import environment, html, percent

MACROS: dict[str, Callable[[str], str]] = {
    "page": lambda t: html.page(t, [t]),
    "section": lambda t: html.section(t, t, html.text(t)),
    "text": lambda t: html.text(t, t),
    "note": lambda t: html.note(t),
    "span": lambda t: html.span(t, t),
    "block": lambda t: html.block(t, [t]),
    "folded": lambda t: html.folded(t, t, True),
    "bullets": lambda t: html.bullets([t]),
    "picture": lambda t: html.picture(t, t),
    "figure": lambda t: html.figure(t, t, t),
    "table": lambda t: html.table("tn", (t, t), [(t, t)], (t, t)),
    "row": lambda t: html.row("td", "t", (t,), t),
    "bar": lambda t: html.bar([(t, 0, 1)]),
    "legend": lambda t: html.legend({t: t}),
    "svg": lambda t: svg.lines({t: [(1.0, 0.5, t)]}, t, t),
    "stacks": lambda t: svg.stacks(
        [(t, 0.0, [(1.0, "red", t)], t)], t, legend={t: "red"}, tick=lambda _: t
    ),
    "areas": lambda t: svg.areas({t: [1.0, 2.0]}, [(0, t)], t, t),
}  # fmt: skip
HOSTILE = "</style></title><script>\"' onload='x'"


def test_every_macro_is_tried() -> None:
    found = {name for name in vars(environment.get_template("kit.j2").module) if not name.startswith("_")}
    assert found == MACROS.keys() - {"stacks", "areas"}


@pytest.mark.parametrize("name", MACROS)
@given(
    before=st.text(st.characters(exclude_categories=())), after=st.text(st.characters(exclude_categories=()))
)
def test_what_is_written_has_the_same_tags_whatever_the_data(name: str, before: str, after: str) -> None:
    shown = MACROS[name](before + HOSTILE + after)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert re.findall("[<>\"']", shown) == re.findall("[<>\"']", MACROS[name]("x"))
    shown.encode()
    if name in ("svg", "stacks", "areas"):
        ElementTree.fromstring(shown)


def test_what_is_not_given_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        html.table("t")
    with pytest.raises(jinja2.UndefinedError):
        environment.from_string("{{ nothing }}").render()


def test_numbers_are_aligned() -> None:
    table = html.table("tn", ("name", "count"), [("a", 1), ("b", 20)], ("sum", 21))
    assert '<th>name</th><th class="n">count</th>' in table
    assert '<td>b</td><td class="n">20</td>' in table
    assert '<tr class="total"><td>sum</td><td class="n">21</td></tr>' in table
    assert ".n { text-align: right" in html.page("title", [table])


def test_stretches_lie_end_to_end_and_share_one_scale() -> None:
    rows = [("a", 0.0, [(1.0, "red", "1"), (2.0, "blue", "2")], ""), ("b", 1.0, [(2.0, "red", "3")], "")]
    drawn = ElementTree.fromstring(svg.stacks(rows, "title"))
    first, second, third = (
        [float(r.attrib[k]) for k in ("x", "width")] for r in drawn.findall("{*}rect[@x]")
    )
    assert first[0] + first[1] == pytest.approx(second[0]) == pytest.approx(third[0])
    assert second[1] == pytest.approx(2 * first[1], abs=0.02) == pytest.approx(third[1], abs=0.02)


def test_a_share_that_was_not_measured_is_a_dash() -> None:
    assert (percent(0.1234), percent(0.5, 0), percent(float("nan"))) == ("12.3 %", "50 %", "-")
