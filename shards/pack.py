"""Pack a source of labelled images into WebDataset tar shards.

    python -m shards.pack SOURCE --out DIR [--size 64] [--crop 360] [--shard-size 1000] [--val 0.02]

1. The source yields its samples in a fixed order. A hash of the key alone sends each one to ``train`` or
   ``val``, so adding data never moves a sample from one to the other.
2. Each split's samples are cut into shards of ``--shard-size``: ``train-000000.tar``, ``val-000000.tar``.
3. Workers turn chunks of samples into PNGs: centre crop, antialiased resize on premultiplied alpha (so that
   the colour of transparent pixels never bleeds in), composite over white.
4. The parent writes them, in order, as ``<key>.json`` (labels, sorted) and ``<key>.png`` with fixed owner,
   mode and time. The same input gives the same bytes whatever ``--jobs``.
5. A shard is a temporary file, then fsync, then a rename; ``.pack.jsonl``, the journal, gets a line for it.
   The index comes last (see shards.index) and the journal goes.

After a kill the same command goes on: a shard is kept when the journal has it, its bytes have the hash
recorded there and its samples (keys, image sizes, labels) are still the same. A folder packed with other
settings or from another source is refused.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import hashlib
import json
import os
import re
import struct
import sys
import tarfile
import time
import zlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.cli import InputError, run
from shards.files import sync_folder
from shards.sources import SOURCES, Sample, Source, detect

if TYPE_CHECKING:
    from shards.index import Row, Shard

JOURNAL = ".pack.jsonl"
CHUNK = 32  # samples a worker gets at a time: 0.15 s of work, 1.5 MB of source images
PIXEL_CAP = 1 << 24  # pixels of a source image (4096 x 4096): a decompression bomb stops here
MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # what Pillow gives for PNGs of up to 8 bits a channel


@dataclass(frozen=True)
class Settings:
    """What the bytes of a packed folder depend on, besides the source. Lengths in pixels."""

    size: int = 64
    crop: int = 360
    shard_size: int = 1000
    val: float = 0.02

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--size", self.size, 1, 4096),
            ("--crop", self.crop, 1, 4096),
            ("--shard-size", self.shard_size, 1, 1_000_000),
        ):
            if not low <= value <= high:
                raise InputError(f"{flag} {value}: allowed: {low} to {high}")
        if not 0 <= self.val < 1:
            raise InputError(f"--val {self.val}: allowed: 0 up to, not including, 1")

    def about(self, source: Source, digest: str) -> dict[str, Any]:
        """The index's fields that tell how and from what the shards were made."""
        return {
            "preprocessing": {
                "crop": self.crop,
                "size": self.size,
                "resample": "bicubic, antialiased, premultiplied alpha",
                "background": "white",
                "encoding": "png",
            },
            "source": {"kind": source.kind, "name": source.name, "digest": digest},
            "shard_size": self.shard_size,
            "val": self.val,
        }


def split_of(key: str, val: float) -> str:
    """``val`` for a share ``val`` of all keys, else ``train``; depends on the key and the share only."""
    fraction = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if fraction < val else "train"


def prepare_image(data: bytes, where: str, *, crop: int, size: int) -> bytes:
    """One source PNG as a packed one: RGB, ``size`` x ``size``, over white.

    Raises InputError, naming ``where``, for data that is no whole PNG, has unfit dimensions or more than 8
    bits a channel.
    """
    import numpy as np
    from PIL import Image

    # The first chunk, read by hand: no decoder is asked before the dimensions are known to be sane.
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 24:
        raise InputError(f"{where}: not a PNG image")
    width, height = struct.unpack(">II", data[16:24])
    if width * height > PIXEL_CAP:
        raise InputError(f"{where}: {width} x {height} pixels; at most {PIXEL_CAP} in all are allowed")
    if crop > min(width, height):
        raise InputError(f"{where}: {width} x {height} pixels, too small for --crop {crop}")
    try:
        # Decoding alone would let a cut end or a wrong checksum pass; verify() leaves the image unusable.
        Image.open(BytesIO(data), formats=("PNG",)).verify()
        image = Image.open(BytesIO(data), formats=("PNG",))
        image.load()
    except Exception as error:  # Pillow raises whatever the damaged bytes lead to
        raise InputError(f"{where}: truncated or damaged PNG ({_told(error)})") from error
    if image.mode not in MODES:
        raise InputError(f"{where}: pixel format {image.mode}; allowed: {', '.join(MODES)}")

    left, top = (width - crop) // 2, (height - crop) // 2
    cropped = image.crop((left, top, left + crop, top + crop)).convert("RGBA")
    small = cropped.convert("RGBa").resize((size, size), Image.Resampling.BICUBIC)
    # Over white, premultiplied: c + (255 - alpha). The filter's overshoot may leave c a little above alpha.
    pixels = np.asarray(small).astype(np.int16)
    white = np.minimum(pixels[..., :3] + (255 - pixels[..., 3:]), 255).astype(np.uint8)
    stream = BytesIO()
    Image.fromarray(white).save(stream, "PNG")
    return stream.getvalue()


def _told(error: Exception) -> str:
    text = str(error)
    # Pillow's "cannot identify image file <_io.BytesIO object at 0x...>" tells an address, not a reason.
    return type(error).__name__ if "BytesIO" in text or not text else text


def label_json(labels: dict[str, int]) -> bytes:
    """A sample's labels as its ``.json`` member."""
    return json.dumps(labels, sort_keys=True).encode()


@dataclass
class _Plan:
    """One shard to come: its samples, in order, and the digest by which they are known again."""

    split: str
    name: str
    samples: list[Sample]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        lines = (f"{s.key} {s.image_bytes} {sorted(s.labels.items())}\n" for s in self.samples)
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()


def _plans(samples: Iterable[Sample], settings: Settings) -> Iterator[_Plan]:
    """Cut the samples of each split into shards. Holds one shard of each split in memory."""
    waiting: dict[str, list[Sample]] = {"train": [], "val": []}
    numbers = dict.fromkeys(waiting, 0)

    def cut(split: str) -> _Plan:
        plan = _Plan(split, f"{split}-{numbers[split]:06d}.tar", waiting[split])
        waiting[split] = []
        numbers[split] += 1
        return plan

    for sample in samples:
        split = split_of(sample.key, settings.val)
        waiting[split].append(sample)
        if len(waiting[split]) == settings.shard_size:
            yield cut(split)
    yield from (cut(split) for split in waiting if waiting[split])


Encoded = list[tuple[str, bytes, bytes]]  # key, image member, label member


def _encode(samples: list[Sample], crop: int, size: int) -> Encoded:
    """The work of a worker: one chunk of samples."""
    return [
        (s.key, prepare_image(s.read_image(), s.where, crop=crop, size=size), label_json(s.labels))
        for s in samples
    ]


def _start_worker() -> None:
    """Ctrl-C is the parent's to handle; a worker ends with its parent, even one killed outright."""
    import multiprocessing
    import signal
    import threading

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _in_order(
    plans: Iterator[_Plan], settings: Settings, jobs: int
) -> Generator[tuple[_Plan, Encoded, bool], None, None]:
    """(plan, one chunk of it, whether the last one), in order, encoded by ``jobs`` processes."""

    def chunks() -> Iterator[tuple[_Plan, list[Sample], bool]]:
        for plan in plans:
            for first in range(0, len(plan.samples), CHUNK):
                last = first + CHUNK >= len(plan.samples)
                yield plan, plan.samples[first : first + CHUNK], last

    if jobs == 1:
        for plan, samples, last in chunks():
            yield plan, _encode(samples, settings.crop, settings.size), last
        return

    import multiprocessing
    from concurrent.futures import Future, ProcessPoolExecutor
    from concurrent.futures.process import BrokenProcessPool

    context = multiprocessing.get_context("forkserver")
    pool = ProcessPoolExecutor(jobs, mp_context=context, initializer=_start_worker)
    ahead: deque[tuple[_Plan, Future[Encoded], bool]] = deque()
    try:
        for plan, samples, last in chunks():
            ahead.append((plan, pool.submit(_encode, samples, settings.crop, settings.size), last))
            if len(ahead) > 2 * jobs:  # enough to keep every worker busy, few enough to bound memory
                plan, future, last = ahead.popleft()
                yield plan, future.result(), last
        while ahead:
            plan, future, last = ahead.popleft()
            yield plan, future.result(), last
    except BrokenProcessPool as error:
        raise InputError("a worker died (out of memory?); the same command goes on where it was") from error
    finally:
        pool.shutdown(cancel_futures=True)


def describe(path: Path, name: str) -> tuple[Shard, list[Row]]:
    """Read a tar shard back: what the index tells of it, and one row a sample.

    Raises ValueError, or tarfile's errors, unless it is a whole shard of image and label pairs.
    """
    from shards.index import Shard

    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        rows: list[Row] = []
        with tarfile.open(fileobj=file, mode="r:") as archive:
            members = archive.getmembers()
            for label, image in zip(members[::2], members[1::2], strict=True):
                key = image.name.removesuffix(".png")
                if (label.name, image.name) != (f"{key}.json", f"{key}.png"):
                    raise ValueError(f"{label.name} and {image.name} are no pair")
                crc = 0
                for member in (image, label):
                    file.seek(member.offset_data)
                    crc = zlib.crc32(file.read(member.size), crc)
                rows.append((key, image.offset_data, label.offset_data, image.size, label.size, crc))
    return Shard(name=name, count=len(rows), bytes=path.stat().st_size, sha256=digest), rows


class _ShardWriter:
    """One shard being written, under a temporary name until ``finish``."""

    def __init__(self, path: Path) -> None:
        import webdataset

        self.path = path
        self.temp = path.with_name(f".{path.name}.tmp")
        self._file = self.temp.open("wb")
        self._tar = webdataset.TarWriter(
            self._file, user="diffcore", group="diffcore", mode=0o644, mtime=0, encoder=False
        )

    def add(self, encoded: Encoded) -> None:
        for key, image, label in encoded:
            self._tar.write({"__key__": key, "png": image, "json": label})

    def finish(self) -> tuple[Shard, list[Row]]:
        """Make the shard durable under its name; what ``describe`` says of it."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        told = describe(self.temp, self.path.name)
        self.temp.replace(self.path)
        sync_folder(self.path.parent)
        return told

    def discard(self) -> None:
        # On a full disk the last flush fails too. The tar goes first: its destructor would write to the file.
        with suppress(OSError):
            self._tar.close()
        with suppress(OSError):
            self._file.close()
        self.temp.unlink(missing_ok=True)


_SHARD_NAME = re.compile(r"(train|val)-[0-9]{6,}\.tar")


class _Journal:
    """``.pack.jsonl``: the settings, then one line a finished shard. Locked while a pack runs."""

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self.path = folder / JOURNAL
        self.done: dict[str, dict[str, str]] = {}
        # The source's digest may change between two attempts: the digest of each shard's samples decides.
        begun = {**about, "source": {k: v for k, v in about["source"].items() if k != "digest"}}
        self._file = self.path.open("a+b")
        try:
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: another shards.pack is writing here") from None
            self._file.seek(0)
            lines = self._file.read().splitlines(keepends=True)
            if lines and lines[0].endswith(b"\n"):
                try:
                    before = json.loads(lines[0])
                    # A kill may have cut the last line; its shard is then packed again.
                    for line in lines[1:]:
                        if line.endswith(b"\n"):
                            entry = json.loads(line)
                            if _SHARD_NAME.fullmatch(entry["name"]):
                                self.done[entry["name"]] = entry
                except (ValueError, KeyError, TypeError) as error:
                    raise InputError(f"{self.path}: not a journal of shards.pack ({error})") from error
                _refuse_other(folder, before, begun)
                if not lines[-1].endswith(b"\n"):
                    self._file.truncate(sum(len(line) for line in lines[:-1]))
            else:
                self._file.truncate(0)
                self._append(begun)
        except BaseException:
            self._file.close()
            raise

    def find(self, plan: _Plan) -> tuple[str, Shard, list[Row]] | None:
        """The shard of ``plan`` when it is there, whole and of the same samples; else None."""
        entry, path = self.done.get(plan.name), self.path.with_name(plan.name)
        if entry is None or entry.get("samples") != plan.digest or not path.is_file():
            return None
        try:
            shard, rows = describe(path, plan.name)
        except (tarfile.TarError, ValueError):
            return None
        return (plan.split, shard, rows) if shard.sha256 == entry.get("sha256") else None

    def record(self, shard: Shard, digest: str) -> None:
        self.done[shard.name] = {"name": shard.name, "sha256": shard.sha256, "samples": digest}
        self._append(self.done[shard.name])

    def _append(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self, *, keep: bool) -> None:
        if not keep:
            self.path.unlink(missing_ok=True)
        with suppress(OSError):  # every line was flushed when it was written; a full disk fails here again
            self._file.close()


def _refuse_other(folder: Path, before: dict[str, Any], now: dict[str, Any]) -> None:
    """InputError naming the first setting in which a packed or begun folder differs from what is asked."""

    def flat(tree: dict[str, Any]) -> dict[str, Any]:
        return {k: v for part in tree.values() if isinstance(part, dict) for k, v in part.items()} | {
            k: v for k, v in tree.items() if not isinstance(v, dict)
        }

    if not isinstance(before, dict):
        raise InputError(f"{folder / JOURNAL}: not a journal of shards.pack")
    old, new = flat(before), flat(now)
    for name in [n for n in new if old.get(n) != new[n]]:
        label = {"kind": "source kind", "name": "source", "digest": "source content"}.get(name, name)
        given = "differs" if name == "digest" else f"is {old.get(name)!r} there, {new[name]!r} asked"
        raise InputError(f"{folder}: packed with other settings ({label} {given}); choose another --out")


def _finished(folder: Path, about: dict[str, Any]) -> dict[str, int] | None:
    """Samples of each split when ``folder`` is packed already, None when it is not; else InputError."""
    from shards.index import FILE, Index

    if not (folder / FILE).exists():
        return None
    index = Index.load(folder)
    given = index.header.model_dump()
    # The name of the source's folder may change; its content, by digest, may not.
    source = {**about["source"], "name": given["source"]["name"]}
    _refuse_other(folder, {name: given[name] for name in about}, {**about, "source": source})
    for split in index.splits.values():
        for shard in split.shards:
            path = folder / shard.name
            if not path.is_file() or path.stat().st_size != shard.bytes:
                raise InputError(f"{path}: missing or damaged; pack again into another --out")
    return {name: len(split) for name, split in index.splits.items()}


def _check_out(out: Path, source: Path) -> None:
    """InputError where writing to ``out`` would harm something else."""
    if out.resolve() == source.resolve() or source.resolve() in out.resolve().parents:
        raise InputError(f"--out {out}: lies inside the source")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: not a folder")
    if out.is_dir() and not (out / JOURNAL).exists():
        others = sorted(entry.name for entry in out.iterdir())
        if others:
            raise InputError(f"--out {out}: not empty and not begun by shards.pack (found {others[0]})")


@dataclass(frozen=True)
class Summary:
    """What a call of ``pack`` found or did."""

    counts: dict[str, int]  # samples of each split
    written: int  # samples encoded by this call; the rest was there already
    complete_before: bool


def pack(
    path: Path,
    out: Path,
    settings: Settings,
    *,
    kind: str | None = None,
    jobs: int = 1,
    report: Callable[[int, int | None], None] = lambda done, total: None,
) -> Summary:
    """Pack the source at ``path`` into the folder ``out``; see the module's text.

    ``report(done, total)`` is called as samples are done; total is None while it cannot be told. Raises
    InputError for a mistake in the source or the settings and OSError where the disk fails; then no
    index.json and no temporary file is left, and finished shards stay for the next attempt.
    """
    source = detect(path, kind)
    about = settings.about(source, source.digest())
    counts = _finished(out, about)
    if counts is not None:
        return Summary(counts, 0, complete_before=True)
    _check_out(out, path)

    from shards.index import write_index

    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    out.mkdir(parents=True, exist_ok=True)
    journal = _Journal(out, about)
    writer: _ShardWriter | None = None
    packed: dict[str, tuple[str, Shard, list[Row]] | None] = {}  # by file name, in the order of the plans
    done = written = 0

    def progress(samples: int) -> None:
        nonlocal done
        done += samples
        share = source.fraction()
        report(done, source.total or (max(done, int(done / share)) if share > 0 else None))

    def missing() -> Iterator[_Plan]:
        """The shards that are still to be written; the ones that are there enter ``packed`` on the way."""
        for plan in _plans(source.samples(), settings):
            packed[plan.name] = there = journal.find(plan)
            if there is None:
                yield plan
            else:
                progress(len(plan.samples))

    try:
        for stale in out.glob(".*.tmp"):  # of a pack that was killed; the lock says that none is running
            stale.unlink()
        with closing(_in_order(missing(), settings, jobs)) as chunks:
            for plan, encoded, last in chunks:
                if writer is None:
                    writer = _ShardWriter(out / plan.name)
                writer.add(encoded)
                written += len(encoded)
                progress(len(encoded))
                if last:
                    shard, rows = writer.finish()
                    writer = None
                    journal.record(shard, plan.digest)
                    packed[plan.name] = (plan.split, shard, rows)
        for name in journal.done.keys() - packed.keys():  # of an attempt when the source held more
            (out / name).unlink(missing_ok=True)
        splits: dict[str, tuple[list[Shard], list[Row]]] = {"train": ([], []), "val": ([], [])}
        for entry in packed.values():
            assert entry is not None
            splits[entry[0]][0].append(entry[1])
            splits[entry[0]][1].extend(entry[2])
        write_index(out, source.schema, about, splits)
    except BaseException as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            error.filename = error.filename or str(out)  # a failed write does not tell where
        if writer is not None:
            writer.discard()
        journal.close(keep=bool(journal.done))
        if not journal.done:
            with suppress(OSError):  # someone may have put a file there meanwhile
                for folder in made:
                    folder.rmdir()
        raise
    journal.close(keep=False)
    return Summary({name: len(rows) for name, (_, rows) in splits.items()}, written, complete_before=False)


@contextmanager
def _progress_bar() -> Iterator[Callable[[int, int | None], None]]:
    """A bar with rate and time left on a terminal; nothing elsewhere, where logs would fill with it."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(
        TextColumn("packing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    ) as bar:
        task = bar.add_task("", total=None, rate="")
        start = time.monotonic()

        def report(done: int, total: int | None) -> None:
            rate = done / max(time.monotonic() - start, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{rate:.0f} images/s")

        yield report


def main(argv: list[str] | None = None) -> None:
    """The command line; see ``--help``."""
    defaults = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m shards.pack",
        description="Pack labelled images into WebDataset tar shards with an index. The same command, run "
        "again after a kill, goes on where it was.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="a folder, or a .tgz or .tar of it")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the shards")
    parser.add_argument("--kind", help=f"kind of source: {', '.join(SOURCES)} (default: found out)")
    parser.add_argument(
        "--size", type=int, default=defaults.size, help="edge of the packed images, pixels (%(default)s)"
    )
    parser.add_argument(
        "--crop", type=int, default=defaults.crop, help="edge of the centre crop, pixels (%(default)s)"
    )
    parser.add_argument(
        "--shard-size", type=int, default=defaults.shard_size, help="samples a shard (%(default)s)"
    )
    parser.add_argument(
        "--val", type=float, default=defaults.val, help="share of validation samples (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    args = parser.parse_args(argv)

    jobs = len(os.sched_getaffinity(0)) if args.jobs is None else args.jobs
    if not 1 <= jobs <= 1024:
        raise InputError(f"--jobs {jobs}: allowed: 1 to 1024")
    settings = Settings(size=args.size, crop=args.crop, shard_size=args.shard_size, val=args.val)
    start = time.monotonic()
    with _progress_bar() as report:
        summary = pack(args.source, args.out, settings, kind=args.kind, jobs=jobs, report=report)
    told = ", ".join(f"{count} {name}" for name, count in summary.counts.items())
    if summary.complete_before:
        print(f"{args.out}: complete already ({told} samples); nothing to do")
        return
    seconds = time.monotonic() - start
    rate = summary.written / max(seconds, 1e-9)
    print(f"{args.out}: {told} samples; packed {summary.written} in {seconds:.1f} s ({rate:.0f} images/s)")


if __name__ == "__main__":
    run(main)
