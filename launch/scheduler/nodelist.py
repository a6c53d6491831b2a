"""Slurm's short forms: ``n[1-3,07-08],login`` for host names, ``2(x3),1`` for tasks per node."""

from __future__ import annotations

import re
from collections.abc import Iterator


def expand(text: str) -> list[str]:
    """Host names of a node list, as ``scontrol show hostnames`` gives them. ValueError if it is none."""
    return [name for part in _split(text) for name in _expand_one(part)]


def _split(text: str) -> Iterator[str]:
    """The parts between the commas that are outside brackets."""
    depth, start = 0, 0
    for i, character in enumerate(text):
        depth += {"[": 1, "]": -1}.get(character, 0)
        if depth not in (0, 1):
            raise ValueError(f"not a node list: {text!r}")
        if character == "," and depth == 0:
            yield text[start:i]
            start = i + 1
    if depth:
        raise ValueError(f"not a node list: {text!r}")
    if text:
        yield text[start:]


def _expand_one(part: str) -> Iterator[str]:
    match = re.match(r"([^\[\]]*)\[([^\[\]]+)\]", part)
    if not match:
        if not part or "[" in part or "]" in part:
            raise ValueError(f"not a node name: {part!r}")
        yield part
        return
    rest = part[match.end() :]
    tails = list(_expand_one(rest)) if rest else [""]
    for item in match[2].split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", item)
        if not numbers:
            raise ValueError(f"not a range of nodes: {item!r}")
        first, last = numbers[1], numbers[2] or numbers[1]
        for number in range(int(first), int(last) + 1):
            for tail in tails:
                yield f"{match[1]}{number:0{len(first)}}{tail}"


def tasks_per_node(text: str) -> list[int]:
    """``2(x3),1`` -> [2, 2, 2, 1], as in SLURM_STEP_TASKS_PER_NODE. ValueError if it is none."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if not match:
            raise ValueError(f"not a list of tasks per node: {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
