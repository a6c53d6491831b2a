"""An index beside tars that others wrote; nothing of them is copied.

1. Worker processes read each tar once, from its first byte to its last: where each sample's image lies, its
   checksum and head, what the sample's other members say, and the tar's SHA-256 (shards.sources.tars).
2. The fields of all samples become attributes, the keys are made plain and another one for each sample, and a
   hash of the key that the tar gives it sends it to ``train`` or ``val`` (a tar may so hold samples of both),
   unless the tars' names tell the split.
3. The tables and index.json are written, one tar's rows after another's: of a sample its key's bytes are in
   memory, some forty more, and four a label. A row tells where the image lies in its tar, the index where the
   tar lies: seen from the index's folder, or behind which address.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from diffbase.cli import InputError
from diffbase.explain import explain
from diffbase.redaction import ADDRESS, shown
from shards.codec.encode import check_head, decode_source, edge_of, prepare
from shards.foreign.output import output
from shards.header import FILE, EmptyTar, Reading, Shard, is_local
from shards.packing.bad import SKIP, Bad, OnBad, write_bad
from shards.packing.plan import SPLITS, Settings, split_of
from shards.packing.workers import map_in_order
from shards.sources.base import Asked
from shards.sources.tars.collection import Collection, check_asked, collect, fields_to_read
from shards.sources.tars.places import Place, names, passed_over, places, whole
from shards.sources.tars.samples import Tar, scan
from shards.sources.tars.webdataset import WebDataset, source_name
from shards.table import Index, Split
from shards.tables.write import Stream, key_width, lacking, widest, write_index


@dataclass(frozen=True)
class Summary:
    """What was indexed: samples of each split, of how many tars, lines for people, how many bad images."""

    counts: dict[str, int]
    tars: int
    notes: tuple[str, ...] = ()
    skipped: int = 0
    complete_before: bool = False


def index(
    given: Sequence[str],
    out: Path,
    settings: Settings,
    asked: Asked,
    *,
    check: bool = False,
    on_bad: OnBad = OnBad(),  # noqa: B008 - frozen
    jobs: int = 1,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> Summary:
    """Index the tars that ``given`` names (see ``places``) in the folder ``out``; see the module's text.

    ``check`` decodes every image instead of looking at its head; ``on_bad`` says whether a bad one is an
    error or left out. InputError for what cannot be indexed, and for a folder that has another index, or what
    an index would be written over.
    """
    check_asked(asked)
    found = places(given)
    if one := next((place for place in found if isinstance(place, str) and is_local(place)), None):
        raise InputError(f"{one}: an address of this machine's files; give a path, or an address elsewhere")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: not a folder")
    try:
        reading = Reading(columns=asked.columns, bins=asked.bins, image_field=asked.image_field)
    except ValidationError as error:
        raise InputError(f"--columns and --image-field: {explain(error, Reading)}") from error
    _check_places(found, out)
    about = {
        "preprocessing": settings.preprocessing(settings.crop, "source"),
        "val": settings.val,
        "reading": reading.model_dump(exclude_none=True),
    }
    if (out / FILE).exists():
        counts, skipped = _finished(out, found, about)
        return Summary(counts, len(found), skipped=skipped, complete_before=True)
    with output(out):
        together = read(found, settings, asked, check=check, jobs=jobs, report=report)
        bad = [Bad(*one) for one in together.bad]
        write_bad(out, bad)
        too_many = len(bad) > on_bad.allowed(together.total + len(bad))
        if bad and (on_bad.action != SKIP or too_many or not together.total):
            on_bad.refuse(bad, out, too_many=too_many)
        splits = streams(together, settings.val, out)
        shards, train = splits["train"]
        write_index(
            out,
            together.schema,
            {
                **about,
                "source": {"kind": WebDataset.kind, "name": source_name(given), "digest": together.digest()},
                "shard_size": max(1, -(-len(train) // max(1, len(shards)))),
                **({"split_by": together.split_by} if together.split_by != "key" else {}),
                **({"skipped": len(bad)} if bad else {}),
                **({"empty": empty} if (empty := _empty(together, out)) else {}),
            },
            splits,
        )
        counts = {name: len(stream) for name, (_, stream) in splits.items()}
        return Summary(counts, len(found), (*passed_over(given), *together.notes), len(bad))


def read(
    found: Sequence[Place],
    settings: Settings,
    asked: Asked,
    *,
    check: bool,
    jobs: int,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> Collection:
    """All that is in the tars at the places ``found``, read by ``jobs`` processes."""
    work = scanner(asked, settings.crop, settings.size if check else None)
    done = 0

    def counted(tar: Tar) -> Tar:
        nonlocal done
        done += 1
        report(done, len(found))
        return tar

    with closing(map_in_order(work, found, min(jobs, len(found)))) as tars:
        return collect(found, names(found), asked, map(counted, tars))


def scanner(asked: Asked, crop: int | None, size: int | None) -> Callable[[Place], Tar]:
    """``scan`` with what is asked of the labels; it decodes each image where ``size`` is given."""
    look = partial(_look, crop=crop, size=size)
    return partial(scan, columns=fields_to_read(asked), image_field=asked.image_field, look=look)


def tables(together: Collection, val: float, out: Path) -> dict[str, Split]:
    """The splits of an index in ``out``; the keys of their tables have the full width."""
    none = np.empty(0, widest(together.schema))
    found = streams(together, val, out).items()
    return {
        name: Split.of(name, shards, np.concatenate([none, *stream.portions()]))
        for name, (shards, stream) in found
    }


def streams(together: Collection, val: float, out: Path) -> dict[str, tuple[list[Shard], Stream]]:
    """Of each split of an index in ``out`` the tars, and the rows: those of one tar are made at a time."""
    labels = [np.asarray(some) for some in together.labels]
    firsts = [0, *accumulate(map(len, together.keys))]
    splits_of = [
        np.array([SPLITS.index(one or split_of(key, val)) for one, key in zip(told, tar.keys, strict=True)])
        .astype(np.int8)
        for told, tar in zip(together.splits, together.tars, strict=True)
    ]  # fmt: skip

    def rows(tar: int, split: int) -> NDArray[np.void]:
        found, mine = together.tars[tar], splits_of[tar] == split
        table = np.zeros(len(mine), widest(together.schema))
        table["key"] = [key.encode("ascii") for key in together.keys[tar]]
        table["image_offset"], table["image_bytes"] = np.asarray(found.starts), np.asarray(found.sizes)
        table["crc"] = np.asarray(found.crcs)
        for number, some in enumerate(labels):
            table["labels"][:, number] = some[firsts[tar] : firsts[tar + 1]]
        chosen: NDArray[np.void] = table[mine]
        return chosen

    def stream(split: int, counts: Sequence[int]) -> Stream:
        some = [tar for tar, count in enumerate(counts) if count]

        def portions() -> Iterator[NDArray[np.void]]:
            return (rows(tar, split) for tar in some)

        width, lack = 1, frozenset[int]()
        for portion in portions():
            width, lack = max(width, key_width(portion)), lack | lacking(portion)
        return Stream(sum(counts), width, lack, portions)

    splits = {}
    for number, name in enumerate(SPLITS):
        counts = [int((where == number).sum()) for where in splits_of]
        if name not in ("train", "val") and not any(counts):  # these are always there, though empty
            continue
        shards = [
            Shard(
                name=called,
                count=count,
                bytes=tar.bytes,
                sha256=tar.sha256,
                place=_seen_from(out, place, called),
            )
            for called, place, tar, count in zip(
                together.names, together.places, together.tars, counts, strict=True
            )
            if count
        ]
        splits[name] = shards, stream(number, counts)
    return splits


def _empty(together: Collection, out: Path) -> list[dict[str, Any]]:
    """The tars that no split has, for the header: so it is known that they were looked at."""
    tars = zip(together.names, together.places, together.tars, strict=True)
    return [
        EmptyTar(
            name=name, bytes=tar.bytes, sha256=tar.sha256, place=_seen_from(out, place, name)
        ).model_dump(exclude_none=True)
        for name, place, tar in tars
        if not tar.keys
    ]


def _seen_from(out: Path, place: Place, name: str) -> str | None:
    """A shard's place in an index in ``out``; None for the file ``name`` beside it."""
    if isinstance(place, str):
        return place
    path = os.path.relpath(whole(place), out.resolve())
    if path == name:
        return None
    return f"./{path}" if ADDRESS.match(path) or is_local(path) else path


def _check_places(found: Sequence[Place], out: Path) -> None:
    """InputError for a tar that an index in ``out`` cannot name."""
    for place, name in zip(found, names(found), strict=True):
        try:
            Shard(name=name, count=1, bytes=0, sha256="0" * 64, place=_seen_from(out, place, name))
        except ValidationError as error:
            raise InputError(f"{shown(place)}: {explain(error, Shard)}") from error


def _look(data: bytes, where: str, *, crop: int | None, size: int | None) -> None:
    """InputError for an image that cannot be prepared, by its head, or where ``size`` is given by itself."""
    if size is None:
        _, width, height = check_head(data, where)
        edge_of(width, height, where, crop)
    else:
        prepare(decode_source(data, where), where, crop, size)


def _finished(out: Path, found: Sequence[Place], about: dict[str, Any]) -> tuple[dict[str, int], int]:
    """Samples of each split and bad images left out, of an index of these tars in ``out``.

    InputError where it has another one.
    """
    there = Index.load(out)
    header = there.header.model_dump()
    asked = {**about, "reading": {**Reading().model_dump(), **about["reading"]}}
    if any(header[name] != value for name, value in asked.items()):
        raise InputError(f"--out {out}: has an index already, with other settings; choose another --out")
    sizes = {shard.path: shard.bytes for shard in there.shards}
    now = {
        _seen_from(out, place, name) or name: sizes.get(str(place), 0)
        if isinstance(place, str)
        else place.stat().st_size
        for place, name in zip(found, names(found), strict=True)
    }
    if sizes != now:
        raise InputError(f"--out {out}: has an index already, of other tars; choose another --out")
    return {name: len(split) for name, split in there.splits.items()}, there.header.skipped
