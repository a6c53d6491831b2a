"""index.json: what a packed folder says of itself, its schema and the limits of what is read of one.

Anybody may have written it: names are plain file names, numbers have limits, fields are those that are here.
Anything else is one InputError. Needs neither numpy nor torch.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from diffbase.cli import InputError
from diffbase.explain import explain
from diffbase.redaction import ADDRESS
from shards.codec import KEPT
from shards.schema import (
    ATTRIBUTES_CAP,
    FORMAT,
    INDEX,
    NAME_CAP,
    SHARD_SIZE_CAP,
    SIZE_CAP,
    VARIANTS_CAP,
    Attribute,
    one_hot_width,
)

FILE = INDEX
VERSIONS = (2, 3, 4)
"""2: labels in the tables. 3: also unknown labels, splits that the source told, samples left out, and tars of
others, which stay where they are. 4: the shards are listed in files of their own, and rows are checked in
blocks as they are read: what opens in no time at any size; and images may be JPEGs. The lowest that has all
that a folder needs is written (4 for more than HELD_SAMPLES or LISTED_CAP shards, and for JPEGs): what was
packed before is packed to the same bytes."""
HELD_SAMPLES = 1 << 20  # whose rows a reader holds in memory: 60 MB
LISTED_CAP = 65_536  # shards that index.json itself lists
LIST_CAP = 1 << 26  # shards that the lists of a split may have: 8 bytes of each are kept
INDEX_CAP = 16 << 20  # bytes of index.json, of which a shard takes 180; parsed, it may take thirty times that
TABLE_CAP = 16 << 30  # bytes of a sample table that is kept in memory: 300 million samples
PLACE_CAP = 8192  # characters of a tar's path or address


LOCAL = ("file", "local", "asynclocal")
"""Schemes of this machine's files."""


def _plain_name(name: str) -> str:
    if not name or name in (".", "..") or set(name) & set("/\\\0:") or name.startswith("."):
        raise ValueError(f"{name!r} is not a plain file name")
    return name


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("a name with characters that cannot be printed")
    return name


def is_local(place: str) -> bool:
    """Whether it is an address of this machine's files."""
    return place.lower().startswith(tuple(f"{scheme}:" for scheme in LOCAL))


def _place(place: str) -> str:
    if place.startswith("/"):
        raise ValueError("an absolute path; allowed: a path that begins at the index's folder, or an address")
    if is_local(place):
        raise ValueError("an address of this machine's files; allowed: a path, or an address elsewhere")
    return _printable(place)


def _of_labels(attribute: Attribute) -> Attribute:
    """A Python dataclass, which sets no limits itself: its module knows no pydantic."""
    if attribute.variants < 1:
        raise ValueError(f"an attribute has no variants; allowed: 1 to {VARIANTS_CAP}")
    if attribute.variants > VARIANTS_CAP:
        raise ValueError(f"an attribute has more than {VARIANTS_CAP} variants")
    if attribute.names:
        raise ValueError("names of variants stand under variant_names")
    if not attribute.name or len(attribute.name) > NAME_CAP:
        raise ValueError(f"an attribute's name must have 1 to {NAME_CAP} characters")
    _printable(attribute.name)
    return attribute


Name = Annotated[str, Field(max_length=NAME_CAP), AfterValidator(_printable)]
PlainName = Annotated[Name, AfterValidator(_plain_name)]
Text = Annotated[str, Field(max_length=4096)]
SplitName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,80}$")]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 40)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Shard(_Strict):
    """One tar file: its name, how many samples of the split and bytes it holds, and its SHA-256.

    ``place`` is where a tar of others lies that is not in the folder: a path from there on, or an address.
    """

    name: PlainName
    count: Annotated[int, Field(ge=1, le=SHARD_SIZE_CAP)]
    bytes: Count
    sha256: Sha256
    place: Annotated[str, Field(min_length=1, max_length=PLACE_CAP), AfterValidator(_place)] | None = None

    @property
    def path(self) -> str:
        """Where it lies, seen from the folder."""
        return self.place or self.name

    @property
    def is_elsewhere(self) -> bool:
        """Whether it has an address of its own."""
        return self.place is not None and ADDRESS.match(self.place) is not None


class EmptyTar(Shard):
    """A tar of others of which every image was left out."""

    count: Literal[0] = 0


class Table(_Strict):
    """A file of the index beside index.json: the sample table of a split, say."""

    name: PlainName
    bytes: Count
    sha256: Sha256


class ShardList(_Strict):
    """What version 4 tells of a split's shards: how many, bytes of all and of the largest, and their list.

    ``places`` says where those of others lie that are not beside the index.
    """

    count: Annotated[int, Field(ge=0, le=LIST_CAP)]
    bytes: Annotated[int, Field(ge=0, lt=1 << 62)]
    largest: Count
    places: Literal["paths", "addresses"] | None = None
    file: Table


class SplitEntry(_Strict):
    """One split as index.json tells it: its shards, or since version 4 their list and the rows' blocks."""

    count: Count
    samples: Table
    shards: Annotated[tuple[Shard, ...], Field(max_length=LISTED_CAP)] = ()
    listed: ShardList | None = None
    blocks: Table | None = None

    @property
    def tables(self) -> list[Table]:
        """The split's files beside index.json."""
        listed = [self.listed.file] if self.listed else []
        return [self.samples, *listed, *([self.blocks] if self.blocks else [])]


class Preprocessing(_Strict):
    """What was done to every image: centre crop and edge in pixels, filter, ground, encoding.

    ``crop`` is None where the largest centred square of each image was taken. Where the encoding is
    ``source``, the images are as somebody else made them, and all this is done when one is read.
    """

    crop: Annotated[int, Field(ge=1, le=SIZE_CAP)] | None
    size: Annotated[int, Field(ge=1, le=SIZE_CAP)]
    resample: Text
    background: Text
    encoding: Literal["png", "webp", "npy", "jpg", "source"]


class SourceEntry(_Strict):
    """Where the samples came from: adapter, name without folder, and digest of the source."""

    kind: Text
    name: Text
    digest: Sha256


class Reading(_Strict):
    """How the tars of others were read: which fields are attributes, quantiles of numbers, which image."""

    columns: Annotated[tuple[Name, ...], Field(max_length=ATTRIBUTES_CAP)] = ()
    bins: Annotated[int, Field(ge=1, le=VARIANTS_CAP)] | None = None
    image_field: Name | None = None


class Header(_Strict):
    """The whole of index.json. ``variant_names`` names the variants of some attributes, for people.

    ``unknown`` names the attributes that some samples lack; ``split_by`` says whether a hash of the keys
    decided the splits or the source told them; ``skipped`` counts bad images that were left out.
    ``reading`` is there where the tars are those of others (``is_foreign``).
    """

    format: str
    version: int
    attributes: Annotated[
        tuple[Annotated[Attribute, AfterValidator(_of_labels)], ...],
        Field(alias="schema", max_length=ATTRIBUTES_CAP),
    ]
    variant_names: dict[Name, tuple[Name, ...]] = {}
    preprocessing: Preprocessing
    source: SourceEntry
    unknown: Annotated[tuple[Name, ...], Field(max_length=ATTRIBUTES_CAP)] = ()
    split_by: Literal["key", "source"] = "key"
    skipped: Count = 0
    empty: Annotated[tuple[EmptyTar, ...], Field(max_length=LISTED_CAP)] = ()
    reading: Reading | None = None
    shard_size: Annotated[int, Field(ge=1, le=SHARD_SIZE_CAP)]
    val: Annotated[float, Field(ge=0, lt=1)]
    splits: Annotated[dict[SplitName, SplitEntry], Field(max_length=16)]

    @cached_property
    def labels(self) -> tuple[Attribute, ...]:
        """The attributes with their variants' names."""
        return tuple(replace(a, names=self.variant_names.get(a.name, ())) for a in self.attributes)

    @property
    def is_foreign(self) -> bool:
        """Whether the tars are those of others, with images of any size, which stay where they are."""
        return self.preprocessing.encoding == "source"

    @cached_property
    def is_elsewhere(self) -> bool:
        """Whether the shards have addresses of their own."""
        listed = (entry.listed for entry in self.splits.values())
        return any(one is not None and one.places == "addresses" for one in listed) or any(
            shard.is_elsewhere for shard in self.shards
        )

    @cached_property
    def has_places(self) -> bool:
        """Whether some shards do not lie beside the index."""
        listed = (entry.listed for entry in self.splits.values())
        return any(one is not None and one.places for one in listed) or any(s.place for s in self.shards)

    @property
    def shards(self) -> list[Shard]:
        """Those that index.json lists, then ``empty``; a tar of others is there once for each split."""
        return [*(shard for entry in self.splits.values() for shard in entry.shards), *self.empty]


def parse_header(data: bytes, path: Path) -> Header:
    """The checked content of an index.json; InputError, naming ``path``, for anything wrong."""
    try:
        given = json.loads(data)
        # Checked before the rest: an index of a later version may have any fields.
        if not isinstance(given, dict) or given.get("format") != FORMAT:
            raise InputError(f'{path}: not an index of shards.pack (no "format": "{FORMAT}")')
        if given.get("version") not in VERSIONS:
            raise InputError(
                f"{path}: version {given.get('version')!r}; this code reads "
                f"{', '.join(map(str, VERSIONS[:-1]))} and {VERSIONS[-1]}: pack it anew"
            )
        header = Header.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{path}: {explain(error, Header)}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: not JSON ({error})") from error
    names = [attribute.name for attribute in header.attributes]
    if len(set(names)) != len(names) or not all(names):
        raise InputError(f"{path}: schema: attribute names must be unique and not empty")
    if one_hot_width(header.attributes) > VARIANTS_CAP:
        raise InputError(f"{path}: schema: more than {VARIANTS_CAP} variants in all")
    variants = {attribute.name: attribute.variants for attribute in header.attributes}
    for name, given_names in header.variant_names.items():
        if len(given_names) != variants.get(name):
            raise InputError(f"{path}: variant_names.{name}: not one name for each variant of the schema's")
    if not set(header.unknown) <= set(names):
        raise InputError(f"{path}: unknown: names an attribute that the schema has not")
    _check_files(header, path)
    if header.preprocessing.encoding == KEPT and header.version < VERSIONS[-1]:
        raise InputError(f"{path}: preprocessing.encoding {KEPT}: only version {VERSIONS[-1]} has it")
    for name, entry in header.splits.items():
        _check_split(header, name, entry, path)
    return header


def _check_split(header: Header, name: str, entry: SplitEntry, path: Path) -> None:
    """InputError unless a split tells its shards in the way of the header's version."""
    if header.version < VERSIONS[-1]:
        if entry.listed or entry.blocks:
            raise InputError(f"{path}: splits.{name}: listed and blocks are of version {VERSIONS[-1]} alone")
        if sum(shard.count for shard in entry.shards) != entry.count:
            raise InputError(f"{path}: splits.{name}: count is {entry.count}, its shards hold another number")
        if entry.samples.bytes > TABLE_CAP:
            raise InputError(f"{path}: splits.{name}.samples.bytes: allowed: up to {TABLE_CAP}")
    elif entry.shards or not entry.listed or not entry.blocks:
        raise InputError(f"{path}: splits.{name}: needs listed and blocks, and no shards")
    elif not header.is_foreign and entry.listed.places:
        raise InputError(f"{path}: splits.{name}: places: only an index of shards.index tells them")
    elif header.is_elsewhere and entry.listed.count and entry.listed.places != "addresses":
        raise InputError(f"{path}: splits.{name}: places: allowed: addresses alone, or paths alone")


def check_remote(header: Header, path: Path) -> None:
    """InputError, naming ``path``, where an index from behind a URL tells paths: not of this machine."""
    if not header.is_elsewhere and header.has_places:
        raise InputError(
            f"{path}: places: paths of the machine that made it; allowed behind a URL: addresses"
        )


def _check_files(header: Header, path: Path) -> None:
    """InputError unless each file has a name of its own, and only tars of others lie elsewhere."""
    entries = header.splits.values()
    some = [*(entry.shards for entry in entries), header.empty]
    tars = [[(shard.name, shard.path, shard.bytes, shard.sha256) for shard in shards] for shards in some]
    flat = [tar for group in tars for tar in group]
    if header.is_foreign and all(len(set(group)) == len(group) for group in tars):
        flat = list(set(flat))  # the samples of one may be of several splits
    files = [FILE, *(table.name for e in entries for table in e.tables), *(name for name, *_ in flat)]
    if len(set(files)) != len(files):
        raise InputError(f"{path}: a file is named twice")
    if not header.is_foreign and header.empty:
        raise InputError(f"{path}: empty: only an index of shards.index tells such tars")
    if not header.is_foreign and any(shard.place for shard in header.shards):
        raise InputError(f"{path}: a shard's place: only an index of shards.index tells one")
    if header.is_foreign != (header.reading is not None):
        raise InputError(f"{path}: reading: has to be there with the encoding source, and only then")
    if header.is_elsewhere and not all(shard.is_elsewhere for shard in header.shards):
        raise InputError(f"{path}: places: allowed: addresses alone, or paths alone")
