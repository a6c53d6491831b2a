"""The dataset card: everything in one file, and nothing in it that a label or a name could break out of."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from shards.header import FILE as INDEX
from shards.packing.card import COLUMNS, EXAMPLE, FILE, ROWS
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import CARTOON_SET
from tests.support.tiny_set import labels_of


class Page(HTMLParser):
    """The page's text in pieces, and its tags with what they hold."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))

    def sheet(self) -> np.ndarray:
        source = next(held["src"] for tag, held in self.tags if tag == "img")
        assert source is not None
        head, data = source.split(",")
        assert head == "data:image/png;base64"
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_histograms_count_every_label(packed: Path) -> None:
    text = (packed / FILE).read_text()
    sections = re.findall(r"<section><h2>(\w+)</h2>(.*?)</section>", text, re.DOTALL)
    assert [name for name, _ in sections] == [a.name for a in CARTOON_SET]
    for (name, section), attribute in zip(sections, CARTOON_SET, strict=True):
        rows = re.findall(
            r'<td>(?:<img alt="" src="[^"]*">)?</td><td>(\d+)</td><td class="n">(\d+)</td>', section
        )
        values = [labels_of(f"cs{number}")[name] for number in range(40)]
        assert rows == [(str(v), str(values.count(v))) for v in range(attribute.variants)]
        assert "width:100.0%" in section
        assert section.count("<img") == len(set(values))  # one of each variant that occurs


def test_sheet_shows_the_samples(packed: Path) -> None:
    sheet = Page((packed / FILE).read_text()).sheet()
    with ShardReader(packed, "train", order="sequential") as reader:
        first, second = reader.read([0, 1]).images
    assert np.array_equal(sheet[2:6, 2:6], first) and np.array_equal(sheet[2:6, 8:12], second)
    assert sheet.shape == (4 * 6 + 2, COLUMNS * 6 + 2, 3)  # 40 samples in rows of 12


def test_a_variant_shows_the_first_sample_that_has_it(packed: Path) -> None:
    section = (packed / FILE).read_text().split("<h2>glasses</h2>")[1]
    shown = re.findall(r'base64,([^"]*)"></td><td>(\d+)</td>', section.split("</section>")[0])
    with ShardReader(packed, "train", order="sequential") as reader:
        train = reader.read(range(len(reader)))
    for data, variant in shown[:3]:
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        of = np.flatnonzero(train.labels[:, [a.name for a in CARTOON_SET].index("glasses")] == int(variant))
        if len(of):  # else it occurs in val alone
            first = Image.fromarray(train.images[of[0]]).resize((EXAMPLE, EXAMPLE), Image.Resampling.BICUBIC)
            assert np.array_equal(image, np.asarray(first))


def test_sheet_is_bounded(make_source, tiny, tmp_path: Path) -> None:
    pack(make_source(tmp_path / "set", range(150)), tmp_path / "out", tiny(size=100))
    sheet = Page((tmp_path / "out" / FILE).read_text()).sheet()
    assert sheet.shape == (ROWS * 98 + 2, COLUMNS * 98 + 2, 3)


def test_names_are_escaped_and_nothing_is_loaded(tmp_path: Path) -> None:
    bad = "<script>alert('1')&"
    for name in (bad, '"><img src="http:'):
        (tmp_path / "<b>set" / name).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "<b>set" / name / "a.png")
    pack(tmp_path / "<b>set", tmp_path / "out", Settings(size=4, val=0))
    text = (tmp_path / "out" / FILE).read_text()
    page = Page(text)
    assert bad in page.texts and "<b>set (imagefolder)" in page.texts
    assert not {"script", "link", "b", "iframe"} & {tag for tag, _ in page.tags}
    sources = [held["src"] or "" for _, held in page.tags if "src" in held]
    assert len(sources) == 3 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert "@import" not in text and "url(" not in text
    assert not [1 for _, held in page.tags if {"onload", "onerror", "href"} & held.keys()]


def test_card_comes_before_the_index_and_tells_no_machine(packed: Path) -> None:
    assert (packed / FILE).stat().st_mtime_ns <= (packed / INDEX).stat().st_mtime_ns
    assert str(packed.parent) not in (packed / FILE).read_text()


def test_no_labels_no_histograms(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    Image.new("RGB", (4, 4), "red").save(tmp_path / "set" / "a.png")
    pack(tmp_path / "set", tmp_path / "out", Settings(size=4, val=0))
    text = (tmp_path / "out" / FILE).read_text()
    assert "<section" not in text and "largest square" in text
    assert (Page(text).sheet()[2:6, 2:6] == (255, 0, 0)).all()
