"""Text that people give and data that are printed: lines that do nothing, on a terminal and in Markdown."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffbase import line, tables
from diffbase.cli import InputError, Parser, between
from diffbase.tables import Console, TextTable

ANY = st.text(st.characters(exclude_categories=()), max_size=60)
MARKUP = [
    "/x[/x]",
    "[/b]",
    "exp[a]",
    "[bold red]x",
    "[link=x]y",
    ":smile:",
    "{task.fields[x]}",
    "\x1b[2J",
    "\x9b2J",
    "a\nb",
]
HOSTILE = st.one_of(st.sampled_from(MARKUP), ANY)


def console() -> tuple[io.StringIO, Console]:
    stream = io.StringIO()
    return stream, Console(file=stream, width=4000, force_terminal=True, legacy_windows=False)


def plain(shown: str) -> str:
    """Without rich's own colours."""
    return re.sub(r"\x1b\[[0-9;]*m", "", shown)


@given(word=HOSTILE)
def test_a_tables_cells_are_text(word: str) -> None:
    stream, out = console()
    table = TextTable(word, word, "b", text=range(2), plain=True)
    table.add_row(word, "x")
    table.print(out)
    shown = plain(stream.getvalue())
    assert all(c.isprintable() or c == "\n" for c in shown)
    for part in filter(str.isascii, line.printable(word).split()):  # a lone combining sign has no width
        assert shown.count(part) >= 3


@given(word=HOSTILE)
def test_a_line_is_text(word: str) -> None:
    stream, out = console()
    tables.say(out, word)
    shown = plain(stream.getvalue())
    assert shown.strip() == line.printable(word).strip() and all(c.isprintable() or c == "\n" for c in shown)


@given(word=HOSTILE)
def test_a_bars_words_are_text(word: str) -> None:
    bar = tables.progress()
    bar.add_task(line.printable(word), total=3, words=line.printable(word))
    stream, out = console()
    out.print(bar.get_renderable())
    for part in filter(str.isascii, line.printable(word).split()):
        assert part in plain(stream.getvalue())


@given(text=ANY)
def test_markdown_shows_data_as_they_are(text: str) -> None:
    shown = line.markdown(text)
    assert "<" not in shown and ">" not in shown and shown.isprintable()
    assert not re.search(r"(?<!\\)(?:\\\\)*[`*\[\]|~]", shown)  # each with a backslash of its own


@given(text=ANY)
def test_a_line_is_refused_or_printed_as_one(text: str) -> None:
    if line.fault(text) is None:
        assert len(text.splitlines()) <= 1 and "\x1b" not in text and "\0" not in text
        text.encode()


def parsed(*arguments: str) -> None:
    parser = Parser()
    parser.add_argument("--text")
    parser.add_argument("--path", type=Path)
    parser.add_argument("--whole", type=int)
    parser.add_argument("--real", type=float)
    parser.parse_args(arguments)


@pytest.mark.parametrize(
    "argument",
    [
        "--text=a\nb", "--text=\udcff", "--text=\x1b", "--path=a\nb", "--path=" + "x" * 256,
        "--whole=" + "9" * 5000,
        "--whole=99999999999999999999", "--whole=nan", "--real=nan", "--real=-inf", "--real=1e999",
        "--text=" + "x" * 5000, "--real=" + "9" * 5000,
    ],
)  # fmt: skip
def test_flags_hold_lines_and_numbers(argument: str) -> None:
    with pytest.raises(InputError) as error:
        parsed(argument)
    words = str(error.value)
    assert (
        words.startswith(f"argument {argument.split('=')[0]}: ") and len(words) < 600 and words.isprintable()
    )


@pytest.mark.parametrize("value", ["0", "1025", "-1", "x", "1.5", "9" * 5000])
def test_a_flag_of_a_range(value: str) -> None:
    parser = Parser()
    parser.add_argument("--threads", type=between(1, 1024))
    with pytest.raises(InputError, match=r"argument --threads: .*: allowed are whole numbers from 1 to 1024"):
        parser.parse_args([f"--threads={value}"])
    assert parser.parse_args(["--threads", "1024"]).threads == 1024


def test_flags_that_are_fine() -> None:
    parsed("--text=a b", "--path=é/[x]", "--whole=-9223372036854775807", "--real=1e-4")


@given(message=ANY)
def test_an_input_error_is_one_printable_line(message: str) -> None:
    assert str(InputError(message)).isprintable()
