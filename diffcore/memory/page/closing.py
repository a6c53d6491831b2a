"""The sum that ends in the number that the system shows, as a waterfall."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from diffbase.page.kit import Html, html
from diffbase.page.rows import Step, waterfall
from diffcore.memory.page.figures import color, word
from diffcore.memory.planning.states import WORDS
from diffcore.memory.reading import mib, on_gpu, seen, size_words

END = "#3b4a5e"
SUM = "#6b7a8d"


def closing(shown: Sequence[tuple[str, dict[str, Any]]]) -> list[Html]:
    """From the tensors at the peak to nvidia-smi's number, or the resident set; the plan's folded below."""
    drawn = [(which, rank, words) for which, rank in shown[::-1] if (words := _drawn(which, rank))]
    if not drawn:
        return []
    (which, rank, parts), *rest = drawn
    folded = [
        html.folded(f"The sum, {other}, rank {its['rank']}", html.block("", words), False)
        for other, its, words in rest
    ]
    return [html.section(f"The sum, {which}, rank {rank['rank']}", *parts, *folded)]


def _drawn(which: str, rank: dict[str, Any]) -> list[Html]:
    rows = [row for row in rank["closure"] if row["bytes"] or row["name"].startswith("residual")]
    if not rows:
        return []
    tensors = [row for row in rows if row["name"] in WORDS]
    others = [row for row in rows if row["name"] not in WORDS]
    sources = {row["source"] for row in tensors}
    steps = [_step(row, "" if others and len(sources) == 1 else row["source"]) for row in tensors]
    held = sum(row["bytes"] for row in tensors)
    if others:
        of = ", ".join(dict.fromkeys(row["source"] for row in tensors))
        steps.append(Step("all tensors at the peak", held, SUM, mib(held), of, is_sum=True))
    steps += [_step(row, row["source"]) for row in others]
    total = sum(row["bytes"] for row in rank["closure"])
    steps.append(Step(_end(which, rank), total, END, mib(total), _whose(which, rank), is_sum=True))
    words = [html.note("MiB. Each bar begins where the one above has ended; striped ones take away.")]
    if seen(rank) != total:
        words.append(html.note(f"The system shows {size_words(seen(rank))}: the rows do not add up to it."))
    title = f"The sum, {which}, rank {rank['rank']}"
    label = f"{title}: from {mib(held)} MiB of tensors to {mib(total)} MiB, {_end(which, rank)}"
    return [*words, waterfall(steps, label)]


def _step(row: dict[str, Any], note: str) -> Step:
    sign = "+" if row["name"].startswith("residual") and row["bytes"] > 0 else ""
    return Step(word(row["name"]), row["bytes"], color(row["name"]), sign + mib(row["bytes"]), note)


def _end(which: str, rank: dict[str, Any]) -> str:
    if on_gpu(rank):
        return "nvidia-smi shows" if which == "measured" else "nvidia-smi will show"
    return "the resident set" if which == "measured" else "all tensors"


def _whose(which: str, rank: dict[str, Any]) -> str:
    return str(rank.get("total", {}).get("source", which))
