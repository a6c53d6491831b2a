"""Check a packed folder against its index, sample by sample: ``python -m shards.verify DIR``.

Prints one line for each thing that is wrong, with its shard and sample. Exit code 0 for a sound folder, 1
for bad data, 2 for bad usage (no such folder, or one that was never packed).
"""

from __future__ import annotations

import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from shards.cli import InputError, Parser, run


def problems(folder: Path) -> Iterator[str]:
    """Every fault of a packed folder, one line each; InputError where the index itself cannot be read."""
    from shards.index import Index
    from shards.plan import split_of
    from shards.read import CorruptSampleError, ShardReader
    from shards.tar import read_back

    index = Index.load(folder)
    seen: set[str] = set()
    for name, split in index.splits.items():
        if not len(split):
            continue
        with ShardReader(folder, name, order="sequential") as reader:
            for shard, start in zip(split.shards, split.starts.tolist(), strict=False):
                path = folder / shard.name
                if not path.is_file():
                    yield f"{shard.name}: missing, with {shard.count} samples"
                    continue
                if path.stat().st_size != shard.bytes:
                    yield f"{shard.name}: {path.stat().st_size} bytes; the index says {shard.bytes}"
                try:
                    told, found = read_back(path)
                    if told.sha256 != shard.sha256:
                        yield f"{shard.name}: its SHA-256 differs from the index's"
                    if found != split.rows(start, shard.count):
                        yield f"{shard.name}: its members are not the ones of the index"
                except (tarfile.TarError, ValueError) as error:
                    yield f"{shard.name}: not a whole shard ({error})"

                for number in range(start, start + shard.count):
                    key = split.key(number)
                    if key in seen:
                        yield f"{shard.name}: sample {key}: its key appears twice"
                    seen.add(key)
                    if split_of(key, index.header.val) != name:
                        yield f"{shard.name}: sample {key}: belongs to another split"
                    try:
                        reader.read([number])
                    except CorruptSampleError as error:
                        yield str(error)


def main(argv: list[str] | None = None) -> None:
    """The command line; see ``--help``."""
    parser = Parser(
        prog="python -m shards.verify",
        description="Check counts, sizes, hashes, images and labels of a packed folder. "
        "Exit code 1: bad data, 2: bad usage.",
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a folder made by shards.pack")
    folder = parser.parse_args(argv).folder

    from shards.index import FILE, Index

    if not (folder / FILE).is_file():
        Index.load(folder)  # tells what is missing
    bad = 0
    try:
        for problem in problems(folder):
            print(problem)
            bad += 1
    except InputError as error:  # the index is there, and damaged
        print(error)
        bad += 1
    if bad:
        print(f"{folder}: {bad} problem{'s' * (bad > 1)}", file=sys.stderr)
        sys.exit(1)
    counts = ", ".join(f"{len(split)} {name}" for name, split in Index.load(folder).splits.items())
    print(f"{folder}: sound ({counts} samples)")


if __name__ == "__main__":
    run(main)
