"""A source of labelled images becomes WebDataset tar shards.

1. The source yields its samples in a fixed order (shards.sources).
2. A hash of the key alone sends each one to ``train`` or ``val``, so adding data never moves a sample from
   one to the other. Each split is cut into shards of ``--shard-size``: ``train-000000.tar``
   (shards.packing.plan).
3. Worker processes turn portions of samples into small images: centre crop, resize, over white
   (shards.codec.encode), and those into the bytes of tar members ``<key>.json`` and ``<key>.png``.
4. The parent writes them, in order. The same input gives the same bytes whatever ``--jobs``. A shard appears
   under its name when it is whole and on the disk (shards.packing.tar).
   A bad image does not end the run: ``bad.jsonl`` names all of them (shards.packing.bad).
5. ``.pack.jsonl``, the journal, gets a line for it (shards.packing.journal), and its rows go into a temporary
   file (shards.packing.spill). ``card.html``, for people (shards.packing.card), and the index come last
   (shards.tables.write) and the journal goes.

After a kill the same command goes on: a shard is kept when the journal has it, its bytes have the hash
recorded there and its samples (keys, image sizes, labels) are still the same; of the samples that it lacks,
which were bad, the images are looked at again. A folder packed with other
settings or from another source is refused.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase.cli import InputError
from diffbase.system_error import is_there
from shards.packing.bad import SKIP, Bad, OnBad, write_bad
from shards.packing.plan import SPLITS, Plan, Settings, plan_shards
from shards.packing.untrained import untrained
from shards.packing.workers import map_in_order, prepare_workers
from shards.remote.fetch import is_url
from shards.schema import one_hot_width
from shards.sources import AS_IT_IS, Asked, Sample, Source, detect

if TYPE_CHECKING:
    from shards.header import Header
    from shards.packing.parts.part import Part
    from shards.packing.portion import Portion
    from shards.packing.spill import Finished
    from shards.packing.tar import Records


@dataclass(frozen=True)
class Summary:
    """What a call of ``pack`` found or did."""

    counts: dict[str, int]  # samples of each split
    written: int  # samples encoded by this call; the rest was there already
    complete_before: bool
    skipped: int = 0  # bad images that were left out
    warnings: list[str] = field(default_factory=list)


def pack(
    path: Path | Sequence[str],
    out: Path,
    settings: Settings,
    *,
    kind: str | None = None,
    asked: Asked = AS_IT_IS,
    on_bad: OnBad = OnBad(),  # noqa: B008 - frozen
    jobs: int = 1,
    part: Part | None = None,
    report: Callable[[int, int | None], None] = lambda done, total: None,
    found: Callable[[Source], None] = lambda source: None,
    begin: Callable[[dict[str, Any]], Header | None] = lambda about: None,
) -> Summary:
    """Pack the source at ``path`` (see ``detect``) into the folder ``out``; see the module's text.

    ``part``: which of several that ``shards.merge`` makes one of; then only its shards are packed.
    ``found(source)`` is called first, once the source is known, then ``begin(about)``, with the index's
    fields that tell the settings: it may give the header of a pack that is complete elsewhere.
    ``report(done, total)`` is called as samples are done; total is None while it is unknown. Raises
    InputError for a mistake in the source or the settings, for bad images that ``on_bad`` does not leave out,
    and OSError where the disk fails; then no index.json and no temporary file is left, and finished shards
    stay for the next attempt.
    """
    if jobs > 1:
        prepare_workers("shards.codec.encode")  # while this process looks at the source
    # Not on top: --help answers without loading numpy.
    from shards.header import FILE
    from shards.packing.completion import complete
    from shards.packing.journal import check_out, finished, open_journal
    from shards.packing.parts.part import Planned, check_part, write_part
    from shards.packing.portion import encode
    from shards.packing.spill import Spill
    from shards.packing.tar import write_shard

    source = detect(path, kind, asked)
    found(source)
    about = settings.about(source, source.digest())
    if is_there(out / FILE):
        check_part(out, part)
    header = begin(about) or finished(out, about)
    if header is not None:
        counts = {name: entry.count for name, entry in header.splits.items()}
        warnings = untrained(out) if part is None and (out / FILE).exists() else []
        return Summary(counts, 0, True, header.skipped, warnings)
    check_out(out, [path] if isinstance(path, Path) else [Path(one) for one in path if not is_url(one)])

    names: dict[str, list[str]] = {split: [] for split in SPLITS}  # of the shards, in order
    packed: dict[str, Finished] = {}  # by name
    waiting: deque[Plan] = deque()  # plans whose samples are being encoded; they come back in this order
    bad: dict[str, list[Bad]] = {}  # by the shard that lacks them
    done = written = skipped = 0
    planned = Planned(part)

    def progress(samples: int) -> None:
        nonlocal done
        done += samples
        share = source.fraction()
        report(done, source.total or (max(done, int(done / share)) if share > 0 else None))

    def all_bad() -> list[Bad]:
        return [one for shards in names.values() for name in shards for one in bad.get(name, ())]

    def note(name: str, some: list[Bad]) -> None:
        nonlocal skipped
        skipped += len(some)
        bad.setdefault(name, []).extend(some)
        if skipped > on_bad.allowed(source.total):
            write_bad(out, all_bad())
            on_bad.refuse(all_bad(), out, all_found=False, too_many=True)

    def missing_chunks() -> Iterator[list[Sample]]:
        """The samples of the shards that are still to be written; the others enter ``packed``."""
        for plan in plan_shards(source.samples(), settings):
            if not planned.is_mine(plan):
                progress(len(plan.samples))
                continue
            names[plan.split].append(plan.name)
            there = journal.find(plan, source.schema)
            if there is not None:
                lacking = plan.without(row[0] for row in there[1])
                looked_at = work(lacking) if lacking else None
                if looked_at is None or not looked_at.records.rows:  # else an image has been mended
                    packed[plan.name] = there[0], spill.add(there[1])
                    progress(len(plan.samples))
                    note(plan.name, looked_at.bad if looked_at else [])
                    continue
            waiting.append(plan)
            yield from plan.chunks()

    def counted(name: str, chunks: Iterable[Portion]) -> Iterator[Records]:
        nonlocal written
        for chunk in chunks:
            if chunk.records.rows:
                yield chunk.records
            written += len(chunk.records.rows)
            progress(len(chunk.records.rows) + len(chunk.bad))
            note(name, chunk.bad)

    work = partial(
        encode,
        names=[attribute.name for attribute in source.schema],
        crop=settings.crop_for(source),
        size=settings.size,
        encoding=settings.encoding,
    )
    with (
        open_journal(out, about, str(part) if part else None) as journal,
        closing(Spill(out, source.schema)) as spill,
    ):
        with closing(map_in_order(work, missing_chunks(), jobs)) as encoded:
            for first in encoded:
                # Exactly this plan's chunks, so that its shard is safe before the next plan's are awaited.
                plan = waiting.popleft()
                rest = islice(encoded, len(plan.chunks()) - 1)
                parts = counted(plan.name, chain([first], rest))
                if (good := next(parts, None)) is None:  # not one is; a later shard keeps its number
                    continue
                shard, rows = write_shard(out / plan.name, chain([good], parts))
                packed[plan.name] = shard, spill.add(rows)
                journal.record(shard, plan.digest)
        write_bad(out, all_bad())
        too_many = skipped > on_bad.allowed(done)  # of an archive known now only
        if skipped and (on_bad.action != SKIP or too_many or not packed):
            on_bad.refuse(all_bad(), out, too_many=too_many)
        for name in journal.done.keys() - packed.keys():  # of an attempt when the source held more
            (out / name).unlink(missing_ok=True)
        if skipped:
            about["skipped"] = skipped
        splits = {split: [packed[name] for name in some if name in packed] for split, some in names.items()}
        if part:
            if not packed:
                raise InputError(f"--part {part}: there are fewer shards than parts; give fewer parts")
            write_part(out, part, planned.digest, on_bad, bad)
        counts = complete(out, source.schema, about, splits, spill)
    return Summary(counts, written, False, skipped, [] if part else untrained(out))


def describe(source: Source) -> str:
    """Kind and labels of a source, in a few words."""
    if not source.schema:
        labels = "no labels"
    elif len(source.schema) == 1:
        (label,) = source.schema
        some = f" ({', '.join(label.names[:10])}{', ...' * (len(label.names) > 10)})" if label.names else ""
        labels = f"one label, {label.name}, of {label.variants} variants{some}"
    else:
        labels = f"{len(source.schema)} labels of {one_hot_width(source.schema)} variants in all"
    total = "" if source.total is None else f", {source.total} samples"
    return f"{source.kind}, {labels}{total}"
