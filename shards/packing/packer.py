"""A source of labelled images becomes WebDataset tar shards.

1. The source yields its samples in a fixed order (shards.sources).
2. A hash of the key alone sends each one to ``train`` or ``val``, so adding data never moves a sample from
   one to the other. Each split is cut into shards of ``--shard-size``: ``train-000000.tar``
   (shards.packing.plan).
3. Worker processes turn portions of samples into small images: centre crop, resize, over white
   (shards.codec.encode), and those into the bytes of tar members ``<key>.json`` and ``<key>.png``.
4. The parent writes them, in order. The same input gives the same bytes whatever ``--jobs``. A shard appears
   under its name when it is whole and on the disk (shards.packing.tar).
5. ``.pack.jsonl``, the journal, gets a line for it (shards.packing.journal). ``card.html``, for people
   (shards.packing.card), and the index come last (shards.table) and the journal goes.

After a kill the same command goes on: a shard is kept when the journal has it, its bytes have the hash
recorded there and its samples (keys, image sizes, labels) are still the same. A folder packed with other
settings or from another source is refused.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.packing.plan import SPLITS, Plan, Settings, plan_shards
from shards.packing.workers import map_in_order, prepare_workers
from shards.schema import one_hot_width
from shards.sources import AS_IT_IS, Asked, Sample, Source, detect

if TYPE_CHECKING:
    from shards.header import Shard
    from shards.packing.tar import Records
    from shards.table import Row


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
    asked: Asked = AS_IT_IS,
    jobs: int = 1,
    report: Callable[[int, int | None], None] = lambda done, total: None,
    found: Callable[[Source], None] = lambda source: None,
    begin: Callable[[dict[str, Any]], dict[str, int] | None] = lambda about: None,
) -> Summary:
    """Pack the source at ``path`` into the folder ``out``; see the module's text.

    ``found(source)`` is called first, once the source is known, then ``begin(about)``, with the index's
    fields that tell the settings: it may give the counts of a pack that is complete elsewhere.
    ``report(done, total)`` is called as samples are done; total is None while it is unknown. Raises
    InputError for a mistake in the source or the settings and OSError where the disk fails; then no
    index.json and no temporary file is left, and finished shards stay for the next attempt.
    """
    if jobs > 1:
        prepare_workers("shards.codec.encode")  # while this process looks at the source
    # Not on top: --help answers without loading numpy.
    from shards.packing.card import write_card
    from shards.packing.journal import check_out, finished, open_journal
    from shards.packing.portion import encode
    from shards.packing.tar import write_shard
    from shards.table import write_index

    source = detect(path, kind, asked)
    found(source)
    about = settings.about(source, source.digest())
    counts = begin(about) or finished(out, about)
    if counts is not None:
        return Summary(counts, 0, complete_before=True)
    check_out(out, path)

    names: dict[str, list[str]] = {split: [] for split in SPLITS}  # of the shards, in order
    packed: dict[str, tuple[Shard, list[Row]]] = {}  # by name
    waiting: deque[Plan] = deque()  # plans whose samples are being encoded; they come back in this order
    variants: dict[str, Counter[int]] = {attribute.name: Counter() for attribute in source.schema}
    done = written = 0

    def progress(samples: int) -> None:
        nonlocal done
        done += samples
        share = source.fraction()
        report(done, source.total or (max(done, int(done / share)) if share > 0 else None))

    def missing_chunks() -> Iterator[list[Sample]]:
        """The samples of the shards that are still to be written; the others enter ``packed``."""
        for plan in plan_shards(source.samples(), settings):
            names[plan.split].append(plan.name)
            for sample in plan.samples:
                for name, variant in sample.labels.items():
                    variants[name][variant] += 1
            there = journal.find(plan, source.schema)
            if there is not None:
                packed[plan.name] = there
                progress(len(plan.samples))
                continue
            waiting.append(plan)
            yield from plan.chunks()

    def counted(chunks: Iterable[Records]) -> Iterator[Records]:
        nonlocal written
        for chunk in chunks:
            yield chunk
            written += len(chunk.rows)
            progress(len(chunk.rows))

    with open_journal(out, about) as journal:
        work = partial(encode, crop=settings.crop_for(source), size=settings.size, encoding=settings.image)
        with closing(map_in_order(work, missing_chunks(), jobs)) as encoded:
            for first in encoded:
                # Exactly this plan's chunks, so that its shard is safe before the next plan's are awaited.
                plan = waiting.popleft()
                rest = islice(encoded, len(plan.chunks()) - 1)
                packed[plan.name] = write_shard(out / plan.name, counted(chain([first], rest)))
                journal.record(packed[plan.name][0], plan.digest)
        for name in journal.done.keys() - packed.keys():  # of an attempt when the source held more
            (out / name).unlink(missing_ok=True)
        splits = {
            split: (
                [packed[name][0] for name in shards],
                [row for name in shards for row in packed[name][1]],
            )
            for split, shards in names.items()
            if shards or split in ("train", "val")  # which are always there, though empty
        }
        write_card(
            out,
            f"{source.name} ({source.kind})",
            {
                **{f"{split} samples": len(rows) for split, (_, rows) in splits.items()},
                **{
                    "image" if k == "encoding" else k: v or "largest square"
                    for k, v in about["preprocessing"].items()
                },
            },
            source.schema,
            variants,
            [
                (packed[name][0], row)
                for shards in names.values()
                for name in shards
                for row in packed[name][1]
            ],
            settings.size,
            settings.image,
        )
        write_index(out, source.schema, about, splits)
    return Summary({name: len(rows) for name, (_, rows) in splits.items()}, written, complete_before=False)


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
