"""What a pack finds in its output folder: nothing, a part to go on with, a finished set, or someone else's.

``.pack.jsonl``, the journal, is there from the first moment of a pack to its last: a line with the settings,
then one for each finished shard. A folder without it that is not empty is finished or not ours.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from diffbase.cli import InputError
from diffbase.explain import explain
from diffbase.files import plain_only
from diffbase.formats import json_file
from diffbase.locking.lock import Lock
from diffbase.system_error import named
from shards.header import FILE, Header, Shard
from shards.packing.bad import FILE as BAD
from shards.packing.plan import SHARD_NAME, Plan
from shards.packing.tar import read_back
from shards.schema import Attribute
from shards.table import Index
from shards.tables.rows import Row

JOURNAL = ".pack.jsonl"
JOURNAL_CAP = 256 << 20  # bytes; a shard takes 200: 1,300,000 of them


class _Done(BaseModel):
    """A finished shard's line: its name and SHA-256, and the digest of its plan."""

    model_config = ConfigDict(strict=True)

    name: str
    sha256: str
    samples: str


def finished(folder: Path, about: dict[str, Any]) -> Header | None:
    """The header of the index when ``folder`` is packed already, None when it is not.

    InputError when it was packed from something else than ``about`` tells (see ``Settings.about``), or a
    shard is missing or has another size.
    """
    if not (folder / FILE).exists():
        return None
    index = Index.load(folder)
    check_same(folder, index.header, about)
    for split in index.splits.values():
        for shard in split.shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise InputError(f"{path}: missing or damaged; pack again into another --out")
    return index.header


def check_same(place: Path | str, header: Header, about: dict[str, Any]) -> None:
    """InputError where the folder at ``place``, of that ``header``, was packed from something else."""
    given = header.model_dump()
    # The name of the source's folder may change; its content, by digest, may not.
    source = {**about["source"], "name": given["source"]["name"]}
    refuse_other(place, {name: given[name] for name in about}, {**about, "source": source})


def begun_with(about: dict[str, Any]) -> dict[str, Any]:
    """The settings that have to be the same when a pack goes on.

    The source's digest may change between two attempts: the digest of each shard's samples decides.
    """
    return {**about, "source": {k: v for k, v in about["source"].items() if k != "digest"}}


def check_out(out: Path, sources: Sequence[Path]) -> None:
    """InputError where writing to ``out`` would harm something else."""
    for source in sources:
        if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
            raise InputError(f"--out {out}: lies inside the source")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: not a folder")
    if out.is_dir() and not (out / JOURNAL).exists():
        names = (entry.name for entry in out.iterdir())
        others = sorted(name for name in names if not name.startswith(JOURNAL))
        if others:
            raise InputError(f"--out {out}: not empty and not begun by shards.pack (found {others[0]})")


@contextmanager
def open_journal(out: Path, about: dict[str, Any], part: str | None = None) -> Iterator[Journal]:
    """The journal of a pack into ``out``, or of a ``part`` of one, for as long as it runs.

    It goes when the pack ends well. When it does not, the finished shards and the names of bad images stay
    with it; where there are none, the folders made for it go too.
    """
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    journal = Journal(out, about, part)
    try:
        for stale in out.glob(".*.tmp"):  # of a pack that was killed; the lock says that none is running
            stale.unlink()
        yield journal
    except BaseException:
        keep = bool(journal.done) or (out / BAD).exists()
        journal.close(keep=keep)
        if not keep:
            with suppress(OSError):  # someone may have put a file there meanwhile
                for folder in made:
                    folder.rmdir()
        raise
    journal.close(keep=False)


class Journal:
    """The open and locked journal; ``done`` maps a finished shard's name to its line."""

    def __init__(self, folder: Path, about: dict[str, Any], part: str | None = None) -> None:
        self.folder = folder
        self.path = folder / JOURNAL
        self.done: dict[str, _Done] = {}
        self._file = open(self.path, "a+b", opener=plain_only)  # noqa: SIM115 - close() does, and a Path has no opener
        self._lock = Lock(self.path, file=self._file)
        try:
            self._take_lock()
            self._take_up({**begun_with(about), "part": part})
        except BaseException:
            self.close(keep=True)
            raise

    def _take_lock(self) -> None:
        if not self._lock.take():
            raise InputError(f"{self.folder}: another shards.pack is writing here{self._lock.holder()}")
        if self._lock.is_removed():  # it ended between our open and our lock
            self._lock.close(remove=True)
            raise InputError(f"{self.folder}: another shards.pack has just ended here; run this one again")

    def _take_up(self, settings: dict[str, Any]) -> None:
        """Read what an earlier attempt left, or begin with the line of the settings."""
        self._file.seek(0)
        size = os.fstat(self._file.fileno()).st_size  # read(JOURNAL_CAP) would take as much memory at once
        text = self._file.read(min(size, JOURNAL_CAP + 1))
        if len(text) > JOURNAL_CAP:
            raise InputError(f"{self.path}: larger than {JOURNAL_CAP} bytes; not a journal of shards.pack")
        whole = text[: text.rfind(b"\n") + 1]  # a kill may have cut the last line; its shard is packed again
        if not whole:
            self._file.truncate(0)
            self._append(settings)
            return
        try:
            first, *lines = whole.splitlines()
            before = json_file.parse(first, "its first line")
            entries = [_Done.model_validate_json(line) for line in lines]
        except ValueError as error:  # pydantic's is one
            what = explain(error, _Done) if isinstance(error, ValidationError) else error
            raise InputError(f"{self.path}: not a journal of shards.pack ({what})") from error
        if not isinstance(before, dict):
            raise InputError(f"{self.path}: not a journal of shards.pack")
        self.done = {entry.name: entry for entry in entries if SHARD_NAME.fullmatch(entry.name)}
        if not self.done:  # only bad images were found, by settings that may have been wrong
            self._file.truncate(0)
            self._append(settings)
            return
        refuse_other(self.folder, before, settings)
        self._file.truncate(len(whole))

    def find(self, plan: Plan, schema: Sequence[Attribute]) -> tuple[Shard, list[Row]] | None:
        """The shard of ``plan`` when it is there, whole and of the same samples; else None."""
        entry, path = self.done.get(plan.name), self.folder / plan.name
        if entry is None or entry.samples != plan.digest or not path.is_file():
            return None
        try:
            shard, rows = read_back(path, schema)
        except ValueError:
            return None
        return (shard, rows) if shard.sha256 == entry.sha256 else None

    def record(self, shard: Shard, digest: str) -> None:
        """Note a finished shard and the digest of its plan."""
        self.done[shard.name] = _Done(name=shard.name, sha256=shard.sha256, samples=digest)
        self._append(self.done[shard.name].model_dump())

    def _append(self, entry: dict[str, Any]) -> None:
        with named(self.path):
            self._file.write(json.dumps(entry).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self, *, keep: bool) -> None:
        """Release the journal; its file is removed unless ``keep``."""
        if not keep:
            self.path.unlink(missing_ok=True)
        self._lock.close(remove=not keep)
        with suppress(OSError):  # every line was flushed when it was written; a full disk fails here again
            self._file.close()


def refuse_other(folder: Path | str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """InputError naming the first setting in which a packed or begun folder differs from what is asked."""

    def flat(tree: dict[str, Any]) -> dict[str, Any]:
        return {k: v for part in tree.values() if isinstance(part, dict) for k, v in part.items()} | {
            k: v for k, v in tree.items() if not isinstance(v, dict)
        }

    old, new = flat(before), flat(now)
    for name in [n for n in new if old.get(n) != new[n]]:
        label = {"kind": "source kind", "name": "source", "digest": "source content"}.get(name, name)
        given = "differs" if name == "digest" else f"is {old.get(name)!r} there, {new[name]!r} asked"
        raise InputError(f"{folder}: packed with other settings ({label} {given}); choose another --out")
