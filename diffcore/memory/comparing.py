"""What is different between two reports, the largest first."""

from __future__ import annotations

from typing import Any

from diffcore.memory.planning.states import CATEGORIES, WORDS
from diffcore.memory.reading import SIDES, fullest, on_gpu, peak, same, seen, size_words

UNSET = "-"
BESIDE = ("name", "date")
"""Of ``run``: no settings."""

Row = dict[str, Any]


def compared(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Row]]:
    """Rows with ``a`` and ``b``: ``settings`` that differ, and bytes of the fullest ranks that do.

    ``moments`` (their sums), ``categories`` at each moment, ``modules`` (what they leave for backward) and
    ``sum`` (what is no tensor), each in the order of the difference, of the moments that both have: measured,
    or planned where one is not measured. What differs by no more than noise is left out, of ``moments`` not.
    """
    found: dict[str, list[Row]] = {"settings": _settings(a["run"], b["run"])}
    found |= {"moments": [], "categories": [], "modules": [], "sum": []}
    if (which := side(a, b)) is None:
        return found
    first, second = fullest(a[which]), fullest(b[which])
    there = {moment["name"]: moment for moment in second["moments"]}
    for mine in (moment for moment in first["moments"] if moment["name"] in there):
        other, at = there[mine["name"]], {"which": which, "moment": mine["name"]}
        whole = max(mine["allocated"], other["allocated"])
        found["moments"].append(at | {"a": mine["allocated"], "b": other["allocated"]})
        for name in dict.fromkeys([*CATEGORIES, *mine["bytes"], *other["bytes"]]):
            x, y = mine["bytes"].get(name, 0), other["bytes"].get(name, 0)
            found["categories"] += _row(at | {"category": name}, x, y, whole)
    found["modules"] = _rows(which, "module", _layers(first), _layers(second))
    found["sum"] = _rows(which, "row", _outside(first), _outside(second))
    for name in ("moments", "categories", "modules", "sum"):
        found[name].sort(key=lambda row: -abs(row["b"] - row["a"]))
    return found


def side(a: dict[str, Any], b: dict[str, Any]) -> str | None:
    """ "measured" where both are, else "planned"; None if they share neither."""
    return next((which for which in SIDES[::-1] if a[which] and b[which]), None)


def sentence(a: dict[str, Any], b: dict[str, Any]) -> str:
    """From the peak of ``a`` to that of ``b``, and what the system shows of both."""
    if (which := side(a, b)) is None:
        return "One is planned alone, the other measured alone."
    first, second = fullest(a[which]), fullest(b[which])
    words = f"The peak {which} goes {arrow(peak(first)['allocated'], peak(second)['allocated'])}"
    number = "nvidia-smi's number" if on_gpu(first) else "the resident set"
    if on_gpu(first) == on_gpu(second) and (on_gpu(first) or which == "measured"):
        words += f"; {number} {arrow(seen(first), seen(second))}"
    return f"{words}."


def arrow(a: int, b: int) -> str:
    """Both, and the change as a share."""
    if same(a, b, max(a, b)):
        return f"from {size_words(a)} to the same"
    change = f"{b / a - 1:+.1%}".replace("%", " %") if a else "new"
    return f"from {size_words(a)} to {size_words(b)} ({change})"


def word(row: Row) -> str:
    """What a row is of, for people."""
    for kind in ("category", "module", "row"):
        if kind in row:
            return WORDS.get(row[kind], str(row[kind]))
    return "all"


def _settings(a: dict[str, Any], b: dict[str, Any]) -> list[Row]:
    names = [name for name in dict.fromkeys([*a, *b]) if name not in BESIDE]
    both = [(name, a.get(name, UNSET), b.get(name, UNSET)) for name in names]
    return [{"setting": name, "a": x, "b": y} for name, x, y in both if x != y]


def _row(at: Row, x: int, y: int, whole: int) -> list[Row]:
    return [] if same(x, y, whole) else [at | {"a": x, "b": y}]


def _rows(which: str, kind: str, a: dict[str, int], b: dict[str, int]) -> list[Row]:
    whole = max(sum(map(abs, a.values())), sum(map(abs, b.values())))
    found = []
    for name in dict.fromkeys([*a, *b]):
        found += _row({"which": which, kind: name}, a.get(name, 0), b.get(name, 0), whole)
    return found


def _layers(rank: dict[str, Any]) -> dict[str, int]:
    return {layer["name"]: layer["bytes"] for layer in rank["layers"]}


def _outside(rank: dict[str, Any]) -> dict[str, int]:
    return {row["name"]: row["bytes"] for row in rank["closure"] if row["name"] not in WORDS}
