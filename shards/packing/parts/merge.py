"""Parts of a pack become the folder that one pack would have made, byte for byte.

A pack that is whole is the only part of itself: its index is written anew, as a pack writes it today.

Shards get another name for the same file (a hard link) where the file system can, else they are copied and
held against their SHA-256. Their rows are those of the parts' indexes; card and index are written anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from diffbase.cli import InputError
from diffbase.files import open_atomic, renamed
from diffbase.locking.lock import Lock
from diffbase.system_error import NO_FILE, is_there, reading
from shards.header import FILE, Shard
from shards.packing.bad import Bad, OnBad, write_bad
from shards.packing.completion import complete
from shards.packing.parts.part import FILE as PART
from shards.packing.parts.part import Part, PartFile, read_part, whole
from shards.packing.plan import SHARD_NAME, SPLITS
from shards.packing.spill import Finished, Spill
from shards.packing.untrained import untrained
from shards.table import Index, Split

LOCK = ".merge.lock"
"""There from the first moment to the last: a folder with it was begun by a merge, and is made anew."""
ABOUT = ("preprocessing", "source", "shard_size", "val", "split_by")
"""What the indexes of parts have to agree on, and what the whole's tells."""
COPY = 1 << 20  # bytes


class Merged(NamedTuple):
    """What a merge made: samples of each split, shards, bad images that the parts left out, warnings."""

    counts: dict[str, int]
    shards: int
    skipped: int
    warnings: list[str]


@dataclass(frozen=True)
class _Opened:
    folder: Path
    part: Part
    told: PartFile
    index: Index
    about: dict[str, Any]


def merge(
    folders: Sequence[Path], out: Path, report: Callable[[int, int | None], None] = lambda done, total: None
) -> Merged:
    """Make ``out`` of all parts of a pack, given in any order. ``report(done, total)`` counts shards.

    InputError for folders that are not all parts of one pack, each once, and for an ``out`` with anything in
    it; OSError where the disk fails: the same call begins anew.
    """
    parts = _opened(folders)
    first = parts[0]
    # Of the first part with the shard: split, shard, number in its split.
    shards: dict[str, dict[str, tuple[_Opened, Split, int]]] = {split: {} for split in SPLITS}
    for part in parts:
        for name, split in part.index.splits.items():
            for number, shard in enumerate(split.shards):
                match = SHARD_NAME.fullmatch(shard.name)
                if name not in shards or not match or match[1] != name:
                    raise InputError(f"{part.folder}: {shard.name}: no shard of a pack's split {name}")
                if shard.name in shards[name]:
                    raise InputError(f"{part.folder}: {shard.name}: another part has it too")
                shards[name][shard.name] = part, split, number
    total = sum(map(len, shards.values()))
    splits: dict[str, list[Finished]] = {split: [] for split in SPLITS}
    bad = {name: some for part in parts for name, some in part.told.bad.items()}
    with _output(out, folders), closing(Spill(out, first.index.schema)) as spill:
        done = 0
        for name, some in shards.items():
            for part, split, number in (some[one] for one in sorted(some, key=_in_order)):
                shard = split.shards[number]
                _bring(part.folder / shard.name, out / shard.name, shard)
                rows = split.table.part(int(split.starts[number]), shard.count)
                splits[name].append((shard, spill.add(rows)))
                done += 1
                report(done, total)
        left_out = [Bad(*one) for name in sorted(bad, key=_in_order) for one in bad[name]]
        write_bad(out, left_out)
        samples = sum(piece.rows for some in splits.values() for _, piece in some)
        on_bad = OnBad(first.told.action, first.told.limit)
        if len(left_out) > on_bad.allowed(samples + len(left_out)):
            on_bad.refuse(left_out, out, too_many=True)
        about = first.about | ({"skipped": len(left_out)} if left_out else {})
        counts = complete(out, first.index.schema, about, splits, spill)
    return Merged(counts, total, len(left_out), untrained(out))


def _in_order(name: str) -> tuple[int, int]:
    """Where a shard of that name comes among those of a pack."""
    match = SHARD_NAME.fullmatch(name)
    return (SPLITS.index(match[1]), int(match[2])) if match else (len(SPLITS), 0)


def _opened(folders: Sequence[Path]) -> list[_Opened]:
    """The parts in order; InputError unless they are all those of one pack, each once."""
    parts: dict[int, _Opened] = {}
    for folder in folders:
        part, told = read_part(folder) if len(folders) > 1 or is_there(folder / PART) else whole(folder)
        index = Index.load(folder)
        if index.header.is_foreign:
            raise InputError(f"{folder}: an index of other people's tars, which are not merged")
        if index.header.skipped != sum(map(len, told.bad.values())):
            raise InputError(
                f"{folder}: its index counts {index.header.skipped} bad images, others are named"
            )
        tree = json.loads((folder / FILE).read_bytes())  # which was checked: numbers as they are written
        one = _Opened(folder, part, told, index, {name: tree[name] for name in ABOUT if name in tree})
        other = next(iter(parts.values()), one)
        if part.of != other.part.of:
            raise InputError(f"{folder}: part {part}, where {other.folder} is part {other.part}")
        if part.number in parts:
            raise InputError(f"{folder}: part {part}, which {parts[part.number].folder} is too")
        if differing := _differing(one, other):
            raise InputError(f"{folder}: a part of another pack than {other.folder} (other {differing})")
        parts[part.number] = one
    if not parts:
        raise InputError("no parts given")
    of = next(iter(parts.values())).part.of
    if missing := [f"{number}/{of}" for number in range(1, of + 1) if number not in parts]:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise InputError(f"missing: part {', '.join(missing[:5])}{more}")
    return [parts[number] for number in sorted(parts)]


def _differing(one: _Opened, other: _Opened) -> str | None:
    """What says that these are not parts of one pack."""
    for name in ABOUT:
        if one.about.get(name) != other.about.get(name):
            return name.replace("_", "-")
    schemas = [[(a, a.names) for a in part.index.schema] for part in (one, other)]
    if schemas[0] != schemas[1]:
        return "labels"
    told = [(part.told.action, part.told.limit) for part in (one, other)]
    if told[0] != told[1]:
        return "--on-bad"
    return "content of the source" if one.told.plan != other.told.plan else None


@contextmanager
def _output(out: Path, folders: Sequence[Path]) -> Iterator[None]:
    """The folder ``out``, made if need be, while it is written into; InputError where others' files are."""
    for folder in folders:
        if out.resolve() == folder.resolve() or folder.resolve() in out.resolve().parents:
            raise InputError(f"--out {out}: lies inside the part {folder}")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: not a folder")
    if out.is_dir() and not (out / LOCK).exists() and (there := sorted(path.name for path in out.iterdir())):
        raise InputError(f"--out {out}: not empty and not begun by shards.merge (found {there[0]})")
    out.mkdir(parents=True, exist_ok=True)
    with Lock(out / LOCK) as lock:
        if not lock.take():
            raise InputError(f"--out {out}: another shards.merge is writing there{lock.holder()}")
        for path in out.iterdir():  # of a merge that was stopped
            if not path.name.startswith(LOCK):
                path.unlink()
        yield
        (out / LOCK).unlink(missing_ok=True)
        lock.close(remove=True)


def _bring(source: Path, target: Path, shard: Shard) -> None:
    """Have a shard at ``target`` too; InputError where it is missing or damaged."""
    try:
        with reading(source) as file:
            if os.fstat(file.fileno()).st_size != shard.bytes:
                raise InputError(f"{source}: missing or damaged; pack the part again")
            try:
                with renamed(target) as temporary:
                    os.link(source, temporary)
                return
            except OSError:  # another file system, or one without links
                pass
            digest = hashlib.sha256()
            with open_atomic(target) as copy:
                while data := file.read(COPY):
                    digest.update(data)
                    copy.write(data)
                if digest.hexdigest() != shard.sha256:
                    raise InputError(f"{source}: missing or damaged; pack the part again")
    except NO_FILE:
        raise InputError(f"{source}: missing or damaged; pack the part again") from None
