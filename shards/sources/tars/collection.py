"""All samples of some tars together: their keys, each another one, their labels and splits."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from diffbase.cli import InputError
from diffbase.redaction import shown
from shards.schema import Attribute
from shards.sources.base import Asked
from shards.sources.labels.attributes import check_bins, labelled, no_column
from shards.sources.labels.columns import NESTED, Column, LeftOut
from shards.sources.labels.columns import shown as printed
from shards.sources.layout import SPLIT_NAMES
from shards.sources.tars.places import Place, splits
from shards.sources.tars.samples import CLASS, FIELDS_CAP, TEXT, BadImage, Tar, plain_key
from shards.sources.tars.texts import Texts

SPLIT = "split"
"""A field that may tell the splits, in any case."""


@dataclass(frozen=True)
class Collection:
    """What several tars hold. Each inner list of a list of lists is a tar's, in the order of its samples."""

    places: Sequence[Place]
    names: Sequence[str]
    """A plain file name for each tar."""
    tars: list[Tar]
    keys: Sequence[Sequence[str]]
    splits: list[list[str | None]]
    """What a tar's name or a field tells; None: a hash of the key in ``tars`` decides.

    So another tar that has the same key moves no sample.
    """
    split_by: str
    """What decides: key, where all are the tars' own, else source."""
    schema: tuple[Attribute, ...]
    labels: list[Sequence[int]]
    """By attribute the variants of all samples, one tar behind the other."""
    notes: tuple[str, ...]

    @property
    def total(self) -> int:
        """Samples of all."""
        return sum(map(len, self.keys))

    @property
    def bad(self) -> list[BadImage]:
        """The images that are not among the samples."""
        return [one for tar in self.tars for one in tar.bad]

    def digest(self) -> str:
        """Hex digest of all tars."""
        return hashlib.sha256("\n".join(tar.sha256 for tar in self.tars).encode()).hexdigest()


def check_asked(asked: Asked) -> None:
    """InputError for what cannot be asked of tars."""
    asked.only("webdataset", "columns", "bins", "image_field")
    check_bins(asked.bins)


def fields_to_read(asked: Asked) -> tuple[str, ...]:
    """What a scan must look at, or nothing for all; a class may be told by a text."""
    columns = _wanted(asked)
    return (*columns, SPLIT, *([TEXT] if CLASS in columns else [])) if columns else ()


def _wanted(asked: Asked) -> tuple[str, ...]:
    """The columns that a command line names: ``class`` or ``cls``, ``txt``, and fields, also as json.NAME."""
    return tuple(CLASS if name == "cls" else printed(name.removeprefix("json.")) for name in asked.columns)


def collect(places: Sequence[Place], names: Sequence[str], asked: Asked, tars: Iterable[Tar]) -> Collection:
    """Put together what scans of the ``places`` found, the tars being called ``names``.

    InputError for keys or labels that cannot be told.
    """
    asked = replace(asked, columns=_wanted(asked))
    columns: dict[str, Column] = {}
    kept: list[Tar] = []
    fields: set[str] = set()
    passed: Counter[str] = Counter()
    count, where = 0, shown(places[0])
    for tar in tars:
        for name, cells in tar.columns.items():
            named = name in asked.columns or (name == TEXT and CLASS in asked.columns)
            column = columns.setdefault(name, Column(name, named, classes=name == CLASS))
            column.add((NESTED if cell is ... else cell for cell in cells), count)
        fields |= tar.fields
        if len(fields) > FIELDS_CAP:
            raise InputError(f"{where}: more than {FIELDS_CAP} fields in all tars")
        passed.update(tar.passed_over)
        tar.columns.clear()
        kept.append(replace(tar, keys=Texts(tar.keys)))
        count += len(tar.keys)
    # Whichever tar tells a field first: a check reads them in another order.
    columns = dict(sorted(columns.items()))
    some = [f"{number} {what}{'s' * (number > 1)} passed over" for what, number in sorted(passed.items())]
    keys = _unique(names, kept)
    told = _splits(places, kept, columns, asked, count)
    by_key = all(keys[n] == tar.keys and not any(told[n]) for n, tar in enumerate(kept))
    split_by = "key" if by_key else "source"
    if not count:  # the images are all bad, and nothing can be said of labels
        return Collection(places, names, kept, keys, told, split_by, (), [], tuple(some))
    some += _choose_class(columns, asked)
    for name in asked.columns:
        if name not in fields and name not in columns:
            raise InputError(f"{where}: --columns: {no_column(name, sorted(fields))}")
        columns.setdefault(name, Column(name))
    labels = labelled(columns, asked, range(count), [True] * count, where)
    variants, notes = list(labels.variants.values()), (*some, *labels.notes)
    return Collection(places, names, kept, keys, told, split_by, labels.schema, variants, notes)


def _unique(names: Sequence[str], tars: Sequence[Tar]) -> list[Sequence[str]]:
    """The keys of the tars; what several have is told apart by the tar's name."""
    keys = [tar.keys for tar in tars]
    counts = _several(keys)
    if not counts:
        return keys
    keys = [
        Texts(plain_key(key, name) if counts[key] > 1 else key for key in some)
        for name, some in zip(names, keys, strict=True)
    ]
    counts, seen = _several(keys), set[str]()
    for name, some in zip(names, keys, strict=True) if counts else ():
        for key in some:
            if key in seen:
                raise InputError(f"{name}: sample {key}: another one has this key; keys must be unique")
            if counts[key] > 1:
                seen.add(key)
    return keys


def _several(keys: Sequence[Sequence[str]]) -> Counter[str]:
    """How often those keys are there that are more than once. Of the others eight bytes each are held."""
    import numpy as np  # not for --help, which lists this source

    hashes = np.fromiter((hash(key) for some in keys for key in some), np.int64, sum(map(len, keys)))
    hashes.sort()
    again = set(hashes[1:][hashes[1:] == hashes[:-1]].tolist())
    counts = Counter(key for some in keys for key in some if hash(key) in again) if again else Counter[str]()
    return Counter({key: count for key, count in counts.items() if count > 1})


def _splits(
    places: Sequence[Place], tars: Sequence[Tar], columns: dict[str, Column], asked: Asked, count: int
) -> list[list[str | None]]:
    """By tar the splits of its samples that a field tells, else its name."""
    name = next((n for n in columns if n.lower() == SPLIT and n not in asked.columns), None)
    found: list[str | None] = []
    if name is not None:
        try:
            found = [SPLIT_NAMES.get((text or "").lower()) for text in columns[name].texts(range(count))]
        except LeftOut:  # no splits, and no label either
            found = [None]
        if None in found or "train" not in found:
            found = []
        else:
            del columns[name]
    if not found:
        found = [split for split, tar in zip(splits(places), tars, strict=True) for _ in tar.keys]
    if "val" not in found:
        # It is cut from the training samples by a hash of their keys.
        found = [None if split == "train" else split for split in found]
    told = iter(found)
    return [[next(told) for _ in tar.keys] for tar in tars]


def _choose_class(columns: dict[str, Column], asked: Asked) -> list[str]:
    """A text is the class where nothing else tells one and it is not asked for itself; a line where not."""
    if TEXT in columns and TEXT not in asked.columns:
        if CLASS not in columns:
            columns[TEXT].name = CLASS
            if CLASS in asked.columns:
                columns[CLASS] = columns.pop(TEXT)
        else:
            del columns[TEXT]
            return [] if asked.columns else [f"left out: {TEXT}: the class is told by another field"]
    return []
