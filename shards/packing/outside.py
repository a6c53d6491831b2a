"""Pack into a folder behind a URL: packed here first, then sent, the index last.

1. ``.pack.json``, with the settings, is put there before the first image is packed: whatever forbids to write
   there is told before the work.
2. The shards are packed into a folder of the user's cache that is named by a hash of the URL, where the same
   command finds them after a kill.
3. Shards, tables and card are sent, then the index; ``.pack.json`` and the folder in the cache go. A line of
   ``sent.jsonl`` notes each file with what the server told of it (its ETag, say): a file of which it tells
   the same is not sent again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from diffbase.cli import InputError
from diffbase.files import write_json
from diffbase.formats import json_file, jsonl
from diffbase.locking.lock import Lock
from diffbase.machine import home
from diffbase.redaction import shown
from diffbase.trust import own_folder
from shards.header import FILE, Header, Shard, Table, parse_header
from shards.packing.bad import OnBad
from shards.packing.packer import Summary, pack
from shards.packing.plan import Settings
from shards.remote.cache import fetch_header
from shards.remote.fetch import address, copy, fetch_small
from shards.remote.upload import Target, part_of
from shards.sources import AS_IT_IS, Asked, Source

if TYPE_CHECKING:
    from shards.packing.parts.part import Part

BEGUN = ".pack.json"
BEGUN_CAP = 1 << 16  # bytes


def pack_to(
    path: Path | Sequence[str],
    out: Path | str,
    settings: Settings,
    *,
    kind: str | None = None,
    asked: Asked = AS_IT_IS,
    on_bad: OnBad = OnBad(),  # noqa: B008 - frozen
    jobs: int = 1,
    part: Part | None = None,
    report: Callable[[int, int | None], None] = lambda done, total: None,
    found: Callable[[Source], None] = lambda source: None,
    tell: Callable[[str], None] = lambda line: None,
) -> Summary:
    """As ``packer.pack``, where ``out`` may also be a URL; ``tell`` gets a line when the sending begins.

    TimeoutError where a server does not answer in spite of some attempts: the same call goes on later.
    """
    pack_here = partial(
        pack,
        settings=settings,
        kind=kind,
        asked=asked,
        on_bad=on_bad,
        jobs=jobs,
        part=part,
        report=report,
        found=found,
    )
    if isinstance(out, Path):
        return pack_here(path, out)
    if part:
        raise InputError(f"--out {shown(out)}: an address; allowed with --part: a folder of this machine")
    with _outgoing(out) as outgoing:
        outgoing.target.files()  # whether it can be reached: before the source is looked at
        try:
            summary = pack_here(path, outgoing.packed, begin=outgoing.begin)
        except InputError as error:
            if outgoing.begun and not outgoing.packed.exists():  # nothing to go on with
                outgoing.target.remove(BEGUN)
            # Nobody gave the folder in the cache.
            raise InputError(str(error).replace(f"{outgoing.packed}:", f"{shown(out)}:")) from error
        if not outgoing.complete:
            outgoing.send(tell)
        shutil.rmtree(outgoing.packed, ignore_errors=True)
    return replace(summary, complete_before=outgoing.complete)


@contextmanager
def _outgoing(url: str) -> Iterator[_Outgoing]:
    """What is under way to ``url``, for this process alone."""
    target = Target(url)
    cache = home.cache()
    if cache is None:
        raise InputError(
            "--out: this user has no home folder, where shards wait to be sent; set XDG_CACHE_HOME"
        )
    folder = own_folder(cache / "outgoing" / hashlib.sha256(url.rstrip("/").encode()).hexdigest()[:32])
    with Lock(folder / ".lock") as lock:
        if not lock.take():
            raise InputError(f"{shown(url)}: another shards.pack is packing for it{lock.holder()}")
        outgoing = _Outgoing(target, folder)
        try:
            yield outgoing
        finally:
            if not outgoing.packed.exists():
                shutil.rmtree(folder)


class _Outgoing:
    """What is under way to a URL, in ``folder``."""

    def __init__(self, target: Target, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.packed, self.sent = folder / "packed", folder / "sent.jsonl"
        self.complete = False  # before this call
        self.begun = False  # by this call

    def begin(self, about: dict[str, Any]) -> Header | None:
        """The header of what is there, complete and packed with the same settings; else None.

        InputError where something else is there, or nothing can be written.
        """
        from shards.packing.journal import begun_with, check_same, refuse_other

        url, there, settings = self.target.url, self.target.files(), begun_with(about)
        if FILE in there:
            _, header = fetch_header(url)
            check_same(shown(url), header, about)
            with TemporaryDirectory(prefix="diffcore-pack-") as name:
                for table in (entry.listed.file for entry in header.splits.values() if entry.listed):
                    with (Path(name) / table.name).open("xb") as here:
                        copy(address(url, table.name), here.fileno(), table.bytes)
                for file in _files(header, Path(name)):
                    if file.name not in there or there[file.name].split()[0] != str(file.bytes):
                        place = shown(address(url, file.name))
                        raise InputError(f"{place}: missing or damaged; pack into another --out")
            self.target.remove(BEGUN)
            self.complete = True
            return header
        others = there.keys() - {BEGUN, part_of(BEGUN)}
        if BEGUN in there:
            place = address(url, BEGUN)
            before = json_file.parse(fetch_small(place, BEGUN_CAP), shown(place))
            if not isinstance(before, dict):
                raise InputError(f"{shown(place)}: not of shards.pack")
            if before == settings or others or any(self.packed.glob("*.tar")) or not self._began(before):
                refuse_other(shown(url), before, settings)
                return None
            # Else only bad images were found, by settings that may have been wrong.
        elif others:
            raise InputError(
                f"--out {shown(url)}: not empty and not begun by shards.pack (found {min(others)})"
            )
        shutil.rmtree(self.packed, ignore_errors=True)  # of what somebody has removed there
        self.sent.unlink(missing_ok=True)
        write_json(self.folder / BEGUN, settings)
        self.target.send(self.folder / BEGUN, BEGUN)
        self.begun = True
        return None

    def _began(self, settings: dict[str, Any]) -> bool:
        """Whether what is under way began here, with these settings."""
        path = self.folder / BEGUN
        return path.exists() and json_file.read(path, most=BEGUN_CAP) == settings

    def send(self, tell: Callable[[str], None]) -> None:
        """Send what is packed, the index last."""
        there = self.target.files()
        before = {entry.get("name"): entry for entry in jsonl.read(self.sent)}
        header = parse_header((self.packed / FILE).read_bytes(), self.packed / FILE)
        files = list(_files(header, self.packed))
        todo = [file for file in files if before.get(file.name) != _line(file, there.get(file.name))]
        kept = f", {len(files) - len(todo)} are there already" if len(todo) < len(files) else ""
        megabytes = sum(file.bytes for file in todo) / 1e6
        tell(f"{shown(self.target.url)}: sending {len(todo)} files of {megabytes:.1f} MB{kept}")
        for file in todo:
            mark = self.target.send(self.packed / file.name, file.name)
            jsonl.append(self.sent, _line(file, mark))
        for name in [*sorted(self._rest(files)), FILE]:
            self.target.send(self.packed / name, name)
        self.target.remove(BEGUN)

    def _rest(self, files: list[Shard | Table]) -> set[str]:
        """What else is for people: the card."""
        there = {path.name for path in self.packed.iterdir() if not path.name.startswith(".")}
        return there - {FILE, *(file.name for file in files)}


def _files(header: Header, folder: Path) -> Iterator[Shard | Table]:
    """All that an index names; ``folder`` has the lists that a larger one's shards stand in."""
    # Not on top: the command answers --help without loading numpy.
    from shards.tables.listed import open_shards

    for entry in header.splits.values():
        yield from open_shards(folder, entry, header)[0] if entry.listed else entry.shards
        yield from entry.tables


def _line(file: Shard | Table, mark: str | None) -> dict[str, str | None]:
    """The line of a file that was sent."""
    return {"name": file.name, "sha256": file.sha256, "mark": mark}
