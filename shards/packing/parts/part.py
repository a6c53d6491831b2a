"""Part I of N of a pack: every N-th shard. A part is a packed folder of its own, with ``part.json``.

Each part goes through the whole source, and plans all shards; it packs its own. ``part.json`` tells which
part it is, and what was planned, by which parts of one pack are known.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import write_json
from diffbase.formats import json_file, jsonl
from diffbase.system_error import is_there
from shards.packing.bad import FILE as BAD
from shards.packing.bad import SKIP, Bad, OnBad
from shards.packing.plan import Plan

FILE = "part.json"
MOST = 10_000  # parts of a pack


class Part(NamedTuple):
    """The ``number``-th, from 1 on, ``of`` so many."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @classmethod
    def parse(cls, text: str) -> Part:
        """``I/N``; InputError for anything else."""
        match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        part = cls(int(match[1]), int(match[2])) if match else cls(0, 0)
        if not 1 <= part.number <= part.of <= MOST:
            raise InputError(f"--part {text}: allowed: 1/N to N/N, N up to {MOST}")
        return part


class Planned:
    """All shards that were planned, in order: which are this part's, and what they are known by."""

    def __init__(self, part: Part | None) -> None:
        self._part, self._count, self._digest = part, 0, hashlib.sha256()

    def is_mine(self, plan: Plan) -> bool:
        """Whether the next shard belongs to this part; all do where there are no parts."""
        self._digest.update(f"{plan.name} {plan.digest}\n".encode())
        self._count += 1
        return self._part is None or self._count % self._part.of == self._part.number % self._part.of

    @property
    def digest(self) -> str:
        """Of all shards so far."""
        return self._digest.hexdigest()


class PartFile(BaseModel):
    """``part.json``: which part, of which plan; its bad images by the shard that lacks them."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    part: str
    plan: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    action: str
    limit: int | None
    bad: dict[str, list[tuple[str, str, str]]] = {}


def write_part(folder: Path, part: Part, plan: str, on_bad: OnBad, bad: Mapping[str, Sequence[Bad]]) -> None:
    """Write ``folder``'s part.json, before its index makes it whole."""
    told = {name: [list(one) for one in some] for name, some in bad.items() if some}
    tree = {"part": str(part), "plan": plan, "action": on_bad.action, "limit": on_bad.limit, "bad": told}
    write_json(folder / FILE, tree)


def read_part(folder: Path) -> tuple[Part, PartFile]:
    """Which part ``folder`` is; InputError where it is none."""
    tree = json_file.read(folder / FILE, "not found: not a part of a pack (shards.pack --part I/N)")
    path = str(folder / FILE)
    if isinstance(tree, dict) and isinstance(tree.get("bad"), dict):  # JSON has no tuples
        tree["bad"] = {
            name: [tuple(one) if isinstance(one, list) else one for one in some]
            if isinstance(some, list)
            else some
            for name, some in tree["bad"].items()
        }
    told = validated(PartFile, tree, path)
    try:
        OnBad(told.action, told.limit)
        return Part.parse(told.part), told
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def whole(folder: Path) -> tuple[Part, PartFile]:
    """A whole pack as its only part; InputError where its bad.jsonl is not ours."""
    bad: dict[str, list[tuple[str, str, str]]] = {}
    for line in jsonl.read(folder / BAD):
        try:
            bad.setdefault("", []).append((str(line["key"]), str(line["where"]), str(line["reason"])))
        except KeyError as error:
            raise InputError(f"{folder / BAD}: a line without {error}") from error
    # As many as it has: the pack allowed them.
    limit = sum(map(len, bad.values()))
    return Part(1, 1), PartFile(part="1/1", plan="0" * 64, action=SKIP, limit=limit, bad=bad)


def check_part(folder: Path, part: Part | None) -> None:
    """InputError where a packed ``folder`` is another part than ``part``, which is None for the whole."""
    there = read_part(folder)[0] if is_there(folder / FILE) else None
    if there != part:
        said = f"part {there}" if there else "a whole pack"
        raise InputError(f"{folder}: holds {said}; choose another --out")
