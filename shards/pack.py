"""Pack a source of labelled images into WebDataset tar shards.

    python -m shards.pack SOURCE --out DIR [--size 64] [--image png] [--shard-size 1000] [--val 0.02]

1. The source yields its samples in a fixed order (shards.sources).
2. A hash of the key alone sends each one to ``train`` or ``val``, so adding data never moves a sample from
   one to the other. Each split is cut into shards of ``--shard-size``: ``train-000000.tar`` (shards.plan).
3. Worker processes turn portions of samples into small images: centre crop, resize, over white
   (shards.encode), and those into the bytes of tar members ``<key>.json`` and ``<key>.png``.
4. The parent writes them, in order. The same input gives the same bytes whatever ``--jobs``. A shard appears
   under its name when it is whole and on the disk (shards.tar).
5. ``.pack.jsonl``, the journal, gets a line for it (shards.resume). ``card.html``, for people (shards.card),
   and the index come last (shards.index) and the journal goes.

After a kill the same command goes on: a shard is kept when the journal has it, its bytes have the hash
recorded there and its samples (keys, image sizes, labels) are still the same. A folder packed with other
settings or from another source is refused.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from shards.attributes import one_hot_width
from shards.cli import Parser, progress_bar, run
from shards.plan import ENCODINGS, Plan, Settings, plan_shards
from shards.sources import SOURCES, Sample, Source, detect
from shards.workers import map_in_order, prepare_workers, worker_count

if TYPE_CHECKING:
    from shards.index import Row, Shard
    from shards.tar import Records


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
    found: Callable[[Source], None] = lambda source: None,
) -> Summary:
    """Pack the source at ``path`` into the folder ``out``; see the module's text.

    ``found(source)`` is called first, once the source is known; ``report(done, total)`` as samples are done,
    total is None while it cannot be told. Raises InputError for a mistake in the source or the settings and
    OSError where the disk fails; then no index.json and no temporary file is left, and finished shards stay
    for the next attempt.
    """
    if jobs > 1:
        prepare_workers("shards.encode")  # while this process looks at the source
    # Not on top: --help answers without loading numpy.
    from shards.card import write_card
    from shards.encode import encode
    from shards.index import write_index
    from shards.resume import check_out, finished, open_journal
    from shards.tar import write_shard

    source = detect(path, kind)
    found(source)
    about = settings.about(source, source.digest())
    counts = finished(out, about)
    if counts is not None:
        return Summary(counts, 0, complete_before=True)
    check_out(out, path)

    names: dict[str, list[str]] = {"train": [], "val": []}  # of the shards, in order
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
            source.variant_names,
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
        write_index(out, source.schema, about, splits, source.variant_names)
    return Summary({name: len(rows) for name, (_, rows) in splits.items()}, written, complete_before=False)


def describe(source: Source) -> str:
    """Kind and labels of a source, in a few words."""
    if not source.schema:
        labels = "no labels"
    elif len(source.schema) == 1:
        (label,) = source.schema
        names = source.variant_names.get(label.name, ())
        some = f" ({', '.join(names[:10])}{', ...' if len(names) > 10 else ''})" if names else ""
        labels = f"one label, {label.name}, of {label.variants} variants{some}"
    else:
        labels = f"{len(source.schema)} labels of {one_hot_width(source.schema)} variants in all"
    total = "" if source.total is None else f", {source.total} samples"
    return f"{source.kind}, {labels}{total}"


def main(argv: list[str] | None = None) -> None:
    """The command line; see ``--help``."""
    defaults = Settings()
    parser = Parser(
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
        "--crop",
        type=int,
        help="edge of the centre crop, pixels (default: 360 for cartoonset, else the shorter side)",
    )
    parser.add_argument(
        "--image", default=defaults.image, help=f"packed as: {', '.join(ENCODINGS)} (%(default)s)"
    )
    parser.add_argument(
        "--shard-size", type=int, default=defaults.shard_size, help="samples a shard (%(default)s)"
    )
    parser.add_argument(
        "--val", type=float, default=defaults.val, help="share of validation samples (%(default)s)"
    )
    parser.add_argument("--jobs", type=int, help="worker processes (default: the cores this process may use)")
    args = parser.parse_args(argv)

    jobs = worker_count(args.jobs)
    settings = Settings(
        size=args.size, crop=args.crop, image=args.image, shard_size=args.shard_size, val=args.val
    )

    def found(source: Source) -> None:
        print(f"{args.source}: {describe(source)}", flush=True)

    start = time.monotonic()
    with progress_bar("packing") as report:
        summary = pack(args.source, args.out, settings, kind=args.kind, jobs=jobs, report=report, found=found)
    told = ", ".join(f"{count} {name}" for name, count in summary.counts.items())
    if summary.complete_before:
        print(f"{args.out}: complete already ({told} samples); nothing to do")
        return
    seconds = time.monotonic() - start
    rate = summary.written / max(seconds, 1e-9)
    print(f"{args.out}: {told} samples; packed {summary.written} in {seconds:.1f} s ({rate:.0f} images/s)")


if __name__ == "__main__":
    run(main)
