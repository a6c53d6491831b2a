"""The kit of pages: no data break out of a macro, nothing is left out unseen, and drawings are XML."""

from __future__ import annotations

import base64
import hashlib
import html as escapes
import re
from collections.abc import Callable
from xml.etree import ElementTree

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase.page import kit, svg
from diffbase.page.kit import environment, html, percent
from diffbase.page.rows import Step, diverging, stacked, waterfall
from diffbase.page.timeline import SCRIPT, Instant, phases, round_numbers, timeline
from diffbase.page.treemap import Node, squarified, treemap

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
    "lead": lambda t: html.lead(t),
    "dot": lambda t: html.dot(t) + html.text(t),
    "card": lambda t: html.card(t, [t], t),
    "track": lambda t: html.track([(0, 1, t, t, True)]) + html.text(t),
    "rows": lambda t: html.rows(t, [(t, t, [(0, 1, t, t, False)], t, t)]),
    "shaped": lambda t: html.shaped([("text", {"x": t}, t, t)]),
    "timeline": lambda t: html.timeline(t, [], [(0, t)], [(0, 1, t)], t, [(t, t, t)]),
    "treemap": lambda t: html.treemap(t, [(0, 0, 1, 1, t, t, t, t, False, [])]),
    "tiled": lambda t: html.tiled([(0, 0, 1, 1, t, t, t, t, True, [(0, 0, 1, 1, t, t, t, t, True, [])])]),
    "svg": lambda t: svg.lines({t: [(1.0, 0.5, t)]}, t, t),
    "stacks": lambda t: svg.stacks(
        [(t, 0.0, [(1.0, "red", t)], t)], t, legend={t: "red"}, tick=lambda _: t
    ),
    "bars": lambda t: (
        stacked([(t, [(1, t, t)], t, t)], t) + diverging([(t, -1, t, t, t)], t)
        + waterfall([Step(t, 1, t, t, t), Step(t, 1, t, t, t, is_sum=True)], t)
    ),
    "instants": lambda t: timeline(
        [Instant(0, t, {t: 1}, [(t, 1, t)]), Instant(1, t, {t: 2})], {t: "red"}, str, t, t
    ),
    "rectangles": lambda t: treemap([Node(t, 2, t, t, t, [Node(t, 1, t, t, t), Node(t, 1, t, t, t)])], t),
}  # fmt: skip
DRAWN = {"stacks", "bars", "instants", "rectangles"}
"""Of what is in the modules beside the kit."""
HOSTILE = "</style></title><script>\"' onload='x'"


def test_every_macro_is_tried() -> None:
    found = {name for name in vars(environment.get_template("kit.j2").module) if not name.startswith("_")}
    assert found == MACROS.keys() - DRAWN


@pytest.mark.parametrize("name", MACROS)
@given(
    before=st.text(st.characters(exclude_categories=())), after=st.text(st.characters(exclude_categories=()))
)
def test_what_is_written_has_the_same_tags_whatever_the_data(name: str, before: str, after: str) -> None:
    shown = MACROS[name](before + HOSTILE + after)
    assert "<script" not in shown and "&lt;script&gt;" in shown
    assert re.findall("[<>\"']", shown) == re.findall("[<>\"']", MACROS[name]("x"))
    shown.encode()
    if name in ("svg", "stacks"):
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


def places(drawn: str) -> list[tuple[float, float]]:
    """Begin and length of each stretch of ``rows``, in per cent."""
    return [(float(a), float(b)) for a, b in re.findall(r"<i.*?left:([-\d.]+)%;width:([-\d.]+)%", drawn)]


def test_only_scripts_of_the_kit_run_and_nothing_comes_from_outside() -> None:
    plain, scripted = kit.page("title", []), kit.page("title", [], SCRIPT)
    assert "script-src 'none'" in escapes.unescape(html.page("t", [])) and "<script" not in plain
    (text,) = re.findall("<script>(.*?)</script>", scripted, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    policy = escapes.unescape(re.findall('Content-Security-Policy" content="(.*?)"', scripted)[0])
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_rows_of_a_waterfall_begin_where_the_one_before_has_ended() -> None:
    steps = [Step("a", 60, "red", "60"), Step("b", 40, "red", "40")]
    steps += [Step("so far", 100, "red", "", is_sum=True), Step("c", -30, "red", "-30")]
    steps += [Step("end", 70, "red", "70", is_sum=True)]
    drawn = waterfall(steps, "title")
    assert places(drawn) == [(0, 60), (60, 40), (0, 100), (70, 30), (0, 70)]
    assert drawn.count('class="less"') == 1 and drawn.count('class="end"') == drawn.count('class="sum"') == 1
    below = places(waterfall([Step("a", 10, "red", ""), Step("b", -30, "red", "")], ""))
    assert below == [(66.67, 33.33), (0, 100)]  # from zero to 10 and back to -20
    assert places(waterfall([Step("a", 0, "red", "0")], "")) == [(0, 0)]


def test_stacks_side_by_side_share_one_scale() -> None:
    rows = [
        ("a", [(1, "red", ""), (1, "blue", "")], "2", ""),
        ("b", [(4, "red", "")], "4", ""),
        ("c", [], "0", ""),
    ]
    assert places(stacked(rows, "")) == [(0, 25), (25, 25), (0, 100)]
    assert places(stacked(rows, "", most=8))[-1] == (0, 50)
    assert places(diverging([("a", 30, "red", "", ""), ("b", -10, "red", "", "")], "")) == [(25, 75), (0, 25)]


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40), st.floats(0.2, 5))
def test_a_treemap_fills_its_rectangle_and_nothing_overlaps(sizes: list[float], width: float) -> None:
    sizes = sorted(sizes, reverse=True)
    found = squarified(sizes, width, 1.0)
    whole = sum(sizes)
    for size, (x, y, w, h) in zip(sizes, found, strict=True):
        assert w * h == pytest.approx(size / whole * width, rel=1e-6)
        assert x >= -1e-9 and x + w <= width * (1 + 1e-9) and y >= -1e-9 and y + h <= 1 + 1e-9
    for i, (x, y, w, h) in enumerate(found):
        for u, v, p, q in found[:i]:
            across, down = min(x + w, u + p) - max(x, u), min(y + h, v + q) - max(y, v)
            assert min(across, down) <= 1e-6
    assert squarified([], 1, 1) == []


def test_a_treemap_of_equal_parts_is_of_squares() -> None:
    assert {round(w / h, 6) for _, _, w, h in squarified([1.0] * 4, 1, 1)} == {1.0}


@given(st.floats(1e-3, 1e9), st.integers(2, 10))
def test_an_axis_has_few_round_numbers(most: float, count: int) -> None:
    found = round_numbers(most, count)
    assert found[0] == 0 and 1 <= len(found) - 1 <= count and found[-1] <= most * (1 + 1e-9)
    step = found[1]
    assert found[-1] + step > most * (1 - 1e-9)
    assert f"{step:.0e}"[0] in "125" and step == pytest.approx(float(f"{step:.0e}"))


INSTANTS = [
    Instant(0, "forward", {"kept": 10}),
    Instant(4, "forward", {"kept": 10, "passing": 30}, [("down.0", 25, "passing")]),
    Instant(8, "backward", {"kept": 10}),
]


def test_a_timeline_says_what_lives_at_each_instant_without_its_script() -> None:
    colors = {"kept": "red", "passing": "blue", "never": "green"}
    drawn = timeline(
        INSTANTS, colors, lambda size: f"{size:g} B", "title", "events", beside=[(0, 20), (8, 50)]
    )
    told = [escapes.unescape(title) for title in re.findall("<title>(.*?)</title>", drawn, re.DOTALL)]
    assert told[1] == (
        "forward\t40 B\npassing\t30 B\tpassing\nkept\t10 B\tkept\nlargest here\ndown.0\t25 B\tpassing"
    )
    assert len(told) == 3 and drawn.count('data-name="') == 2 and "stroke-dasharray" in drawn
    assert "title. Highest: 40 B, in forward. Phases: forward, backward" in drawn
    assert [float(x) for x in re.findall(r'data-x="([\d.]+)"', drawn)] == [0, 500, 1000]
    assert re.findall(r'data-peak="(\d)"', drawn) == ["1"] and ">passing</span>" in drawn
    assert phases(INSTANTS) == [("forward", 0), ("backward", 4)]
    alone = timeline([Instant(0, "only", {})], colors, str, "title", "events")
    assert "NaN" not in alone and alone.count("<title>") == 1
