"""Damage: to bytes, and to the tree inside where the bytes are JSON or YAML."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any

import yaml

WORDS = [
    b"\x00",
    b"\xff",
    b"\x80",
    b"\x7f\xff\xff\xff",
    b"\xff" * 4,
    b"\xff" * 8,
    b"-1",
    b"1e999",
    b"nan",
    b"NaN",
    b"Infinity",
    b"null",
    b"7777777",
    b"99999999999",
    b"9" * 30,
    b"9" * 5000,
    b"[" * 40,
    b"[" * 3000,
    b'{"a":' * 2000,
    b"\n",
    b"\r",
    b"\x1b[2J",
    b"\x7f",
    b"[/b]",
    b"[bold]",
    b"exp[a]",
    b"<script>",
    b"../../x",
    b"/dev/full",
    b"~nosuchuser/x",
    b"$(touch pwned)",
    b"`touch pwned`",
    b"'\"",
    b"%s%n{}",
    "\u202e\u2028é".encode(),
    b"\xed\xa0\x80",
]
LEAVES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    2**31,
    2**64 + 5,
    10**400,
    -(10**30),
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    "x",
    " ",
    "a\0b",
    "a\nb",
    "\x1b[2J",
    "[/b]",
    "exp[a]",
    "../../x",
    "/dev/full",
    "~nosuchuser/x",
    "dir://x",
    "http:///x",
    "\ud800",
    "é" * 300,
    "9" * 5000,
    [],
    {},
    [[1]],
    [None],
    {"": 1},
    {"a\nb": [1, {}]},
]


def damage(data: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """One to four changes: flipped bits, other bytes, a word, a lost, doubled or moved piece, a cut end."""
    choice = [*WORDS, *words, *words]
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out) + 1)
        piece = slice(place, place + rng.choice([1, 2, 4, 16, 512]))
        match rng.randrange(7):
            case 0 if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[piece] = rng.randbytes(len(out[piece]))
            case 2:
                del out[piece]
            case 3:
                out[place:place] = out[piece]
            case 4:
                out[place:place] = rng.choice(choice)
            case 5:
                word = rng.choice(choice)
                out[place : place + len(word)] = word
            case 6 if rng.random() < 0.3:
                del out[place:]
    return bytes(out)


def places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key or number) in a tree."""
    found = []
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict | list):
            keys = list(one) if isinstance(one, dict) else range(len(one))
            found += [(one, key) for key in keys]
            waiting += [one[key] for key in keys]
    return found


def _leaf(rng: random.Random) -> Any:
    return copy.deepcopy(rng.choice(LEAVES))  # later changes are to the tree, not to the list of leaves


def rewrite(tree: Any, rng: random.Random) -> Any:
    """One to three changes to a tree: another leaf, a lost key, a new one, a part of it elsewhere."""
    for _ in range(rng.randint(1, 3)):
        found = places(tree)
        if not found:
            return _leaf(rng)
        holder, key = rng.choice(found)
        match rng.randrange(6):
            case 0 | 1:
                holder[key] = _leaf(rng)
            case 2:
                del holder[key]
            case 3 if isinstance(holder, dict):
                holder[rng.choice([str(key) + "x", "", "a\nb", "run", "é"])] = _leaf(rng)
            case 3:
                holder.insert(key, _leaf(rng))
            case 4:
                other, name = rng.choice(found)
                holder[key] = json.loads(json.dumps(other.get(name) if isinstance(other, dict) else None))
            case 5:
                holder[key] = [holder[key]] if rng.random() < 0.5 else {"a": holder[key]}
    return tree


def tree_of(data: bytes) -> Any:
    """The tree in ``data``; None where there is none, or one that aliases make large."""
    if b"*" in data and b"&" in data:
        return None
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        try:
            tree = yaml.safe_load(data)
        except Exception:
            return None
    return tree if isinstance(tree, dict | list) else None


def mutate(data: bytes, rng: random.Random, words: Sequence[bytes] = ()) -> bytes:
    """Of an example something that is nearly one: half the time in its tree, if it has one."""
    if rng.random() < 0.5 and (tree := tree_of(data)) is not None:
        return json.dumps(rewrite(tree, rng), default=str).encode("utf-8", "surrogatepass")
    return damage(data, rng, words)
