"""What others get of a run: no local path, no credentials, and names that are text."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.runs import export, source
from shards.schema import Attribute
from tests.support import tiny_run

HOSTILE = ["<script>x</script>", "a|b", "[x](http://h)", "a\nb", "`x`", "\x1b[2J", "![x](y)"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    schema = [Attribute(name, 2) for name in HOSTILE]
    return tiny_run.write(tmp_path_factory.mktemp("far") / "away" / "from" / "here", 4, schema=schema)


def test_an_exports_card_shows_names_as_text(run: Path, tmp_path: Path) -> None:
    export.export(run, tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "<" not in card and "\x1b" not in card and "&lt;script&gt;x&lt;/script&gt; (2)" in card
    row = next(line for line in card.splitlines() if line.startswith("| attributes"))
    assert row.replace("\\|", "").count("|") == 3 and "a\\\\nb (2)" in row and "\\[x\\](http" in row


def test_an_export_keeps_the_variants_names(tmp_path: Path) -> None:
    names = ("<b>x", "a|b", "`c`")
    schema = [
        Attribute("Цвет волос", 3, names),
        Attribute("plain", 2),
        Attribute("many", 99, tuple(map(str, range(99)))),
    ]
    run = tiny_run.write(tmp_path / "run", 4, schema=schema)
    export.export(run, tmp_path / "out")
    for place in (run, tmp_path / "out"):
        found = source.find(place).schema
        assert found == tuple(schema) and [a.names for a in found] == [a.names for a in schema]
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\n- Цвет волос: &lt;b&gt;x, a\\|b, \\`c\\`\n- many: 0, 1, 2" in card and "(99 in all)" in card
    assert "- plain" not in card


def test_a_card_says_what_the_network_sees(tmp_path: Path) -> None:
    run = tiny_run.write(tmp_path / "run", 4)
    plain = (run / "config.yaml").read_text()
    for more, said in {
        "": ["in [-1, 1].", "| schedule | linear, 50 timesteps, input scale 1 |", "| predicts | eps |"],
        ", target: v, zero_terminal_snr: true, pixels: unit, shift: 2": [
            "in [0, 1].", "input scale 1, rescaled to end in pure noise, shift 2 |",
        ],
        ", target: flow, schedule: flow": ["flow (noise - image, from (1 - s) image + s noise) |"],
    }.items():  # fmt: skip
        (run / "config.yaml").write_text(plain.replace("timesteps: 50", f"timesteps: 50{more}"))
        out = tmp_path / f"out{len(more)}"
        export.export(run, out)
        card = (out / "README.md").read_text()
        assert all(words in card for words in said)


def test_exports_of_one_checkpoint_are_the_same_bytes(run: Path, tmp_path: Path) -> None:
    for name in "ab":
        export.export(run, tmp_path / name)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in "ab")
    assert first == second


def test_an_export_says_no_local_path(run: Path, tmp_path: Path) -> None:
    export.export(run, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert str(run.parent).encode() not in path.read_bytes(), path
    found = source.find(tmp_path / "out")
    assert (
        found.config.run == tmp_path / "out" / "here" and found.config.model == source.find(run).config.model
    )


GIVEN = {
    "near": ("{near}/shards", "../shards"),
    "far": ("/a/b/c/shards", "shards"),
    "root": ("/", "data"),
    "a URL": ("https://me:word@h.example/x?sig=abc", "https://h.example/x"),
}


@pytest.mark.parametrize("kind", GIVEN)
def test_the_datas_path(kind: str, tmp_path: Path) -> None:
    path, wanted = GIVEN[kind]
    (tmp_path / "run.yaml").write_text(tiny_run.CONFIG.format(run="/home/x/y"))
    given = {
        "data": {"path": path.format(near=tmp_path), "cache": "/home/x/cache"},
        "init_from": "/home/x/older", "engine": {"deepspeed": "/home/x/zero.json"},
    }  # fmt: skip
    config = configure.changed(configure.load(tmp_path / "run.yaml"), given)
    tree = yaml.safe_load(export.portable(config, tmp_path / "out"))
    assert tree["data"]["path"] == wanted and "/home" not in str(tree) and "word" not in str(tree)
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(tree))
    assert configure.load(tmp_path / "out.yaml").identity() == config.identity()


@given(parts=st.lists(st.text("abc", min_size=1, max_size=3), max_size=8))
def test_no_folder_above_the_export_is_named(parts: list[str]) -> None:
    tree = yaml.safe_load(tiny_run.CONFIG.format(run="/r"))
    config = Config.model_validate(tree | {"data": {"path": "/home/" + "/".join(parts)}})
    tree = yaml.safe_load(export.portable(config, Path("/srv/exports/one/out")))
    assert not Path(tree["data"]["path"]).is_absolute() and ".." not in tree["data"]["path"]
