"""All samples of some tars together: their keys, each another one, and their labels."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from diffbase.cli import InputError
from shards.schema import VARIANTS_CAP, Attribute
from shards.sources.base import Asked
from shards.sources.tars.attributes import attributes
from shards.sources.tars.places import Place, splits
from shards.sources.tars.samples import CLASS, TEXT, Tar, Value, plain_key


@dataclass(frozen=True)
class Collection:
    """What several tars hold. Each inner list of a list of lists is a tar's, in the order of its samples."""

    places: Sequence[Place]
    names: Sequence[str]
    """A plain file name for each tar."""
    splits: list[str | None]
    """The one that a tar's name tells; None: a hash of each key decides."""
    tars: list[Tar]
    keys: list[list[str]]
    schema: tuple[Attribute, ...]
    labels: list[list[int]]
    """By attribute the variants of all samples, one tar behind the other."""
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Samples of all."""
        return sum(map(len, self.keys))

    @property
    def split_by(self) -> str:
        """What decides the splits: source, or key."""
        return "source" if any(self.splits) else "key"

    @property
    def bad(self) -> list[str]:
        """What is wrong with images that are not among the samples."""
        return [fault for tar in self.tars for fault in tar.bad]

    def digest(self) -> str:
        """Hex digest of all tars."""
        return hashlib.sha256("\n".join(tar.sha256 for tar in self.tars).encode()).hexdigest()


def wanted(columns: Sequence[str]) -> tuple[str, ...]:
    """The columns that a command line names: ``class`` or ``cls``, ``txt``, and fields, also as json.NAME."""
    return tuple(CLASS if name == "cls" else name.removeprefix("json.") for name in columns)


def fields_to_read(columns: Sequence[str]) -> tuple[str, ...]:
    """What a scan must look at for these ``columns``: a class may be told by a text."""
    return (*columns, TEXT) if CLASS in columns else tuple(columns)


def collect(places: Sequence[Place], names: Sequence[str], asked: Asked, tars: Iterable[Tar]) -> Collection:
    """Put together what scans of the ``places`` found, the tars being called ``names``.

    InputError for keys or labels that cannot be told.
    """
    columns, kept = _Columns(), []
    passed: Counter[str] = Counter()
    for tar in tars:
        columns.add(tar)
        passed.update(tar.passed_over)
        tar.columns.clear()  # they are in ``columns`` now
        kept.append(tar)
    keys = _unique(names, kept)
    schema, labels, notes = columns.attributes(wanted(asked.columns), asked.bins)
    some = [f"{count} {what}{'s' * (count > 1)} passed over" for what, count in sorted(passed.items())]
    return Collection(places, names, splits(places), kept, keys, schema, labels, (*some, *notes))


def _unique(names: Sequence[str], tars: Sequence[Tar]) -> list[list[str]]:
    """The keys of the tars; what several have is told apart by the tar's name."""
    counts = Counter(key for tar in tars for key in tar.keys)
    keys = [
        [key if counts[key] == 1 else plain_key(key, name) for key in tar.keys]
        for name, tar in zip(names, tars, strict=True)
    ]
    seen: set[str] = set()
    for name, some in zip(names, keys, strict=True):
        for key in some:
            if key in seen:
                raise InputError(f"{name}: sample {key}: another one has this key; keys must be unique")
            seen.add(key)
    return keys


class _Columns:
    """The values of all tars by field, one for each sample. Words are kept once."""

    def __init__(self) -> None:
        self.values: dict[str, list[Value]] = {}
        self.left_out: dict[str, str] = {}
        self._words: dict[str, dict[str, str]] = {}
        self._count = 0

    def add(self, tar: Tar) -> None:
        self.left_out |= tar.left_out
        for name in self.left_out.keys() & self.values.keys():
            del self.values[name]
        for name in tar.columns.keys() - self.left_out.keys():
            self.values.setdefault(name, [None] * self._count)
        for name in list(self.values):
            words = self._words.setdefault(name, {})
            self.values[name] += [
                words.setdefault(value, value) if isinstance(value, str) else value
                for value in tar.columns.get(name, [None] * len(tar.keys))
            ]
            if len(words) > VARIANTS_CAP:
                del self.values[name]
                self.left_out[name] = f"more than {VARIANTS_CAP} different texts"
        self._count += len(tar.keys)

    def attributes(
        self, columns: Sequence[str], bins: int | None
    ) -> tuple[tuple[Attribute, ...], list[list[int]], tuple[str, ...]]:
        """Schema, variants by attribute, and lines about what was left out."""
        if TEXT in self.values and CLASS not in self.values and TEXT not in columns:
            self.values[CLASS] = self.values.pop(TEXT)
        elif CLASS in self.values and TEXT not in columns:
            self.values.pop(TEXT, None)
        return attributes(self.values, self.left_out, columns, bins)
