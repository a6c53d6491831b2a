"""What a pack holds in memory as its samples grow, beside another checkout of this repository.

    python benchmarks/pack_memory.py [--samples 20000 200000] [--before ../other]

Packs a source that makes its samples (one raw pixel each) as they are asked for, in shards of 1,000, in a
process of its own for each number of samples, and gives the most that it held, MiB, and its CPU seconds. This
side also writes an index of version 4, as a pack of more than a million samples does (``listed``): the check
at a pack's end holds the table of a smaller one. ``indexed``: what ``shards.index`` holds of as many samples
of others' tars, whose scans are made. ``bytes_a_sample`` is the growth between the first and the last number.
Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]


def side(count: int, out: Path, listed: bool) -> None:
    """One pack: a line of JSON."""
    from shards.packing import packer
    from shards.packing.plan import Settings
    from shards.schema import Attribute
    from shards.sources import Sample

    class Made:
        kind, name, split_by, notes, crop = "made", "made", "key", (), None
        schema, total = (Attribute("class", 10),), count

        def digest(self) -> str:
            return "0" * 64

        def fraction(self) -> float:
            return 0.0

        def samples(self) -> Iterator[Sample]:
            for n in range(count):
                yield Sample(f"key-number-{n:09d}", f"no. {n}", bytes(3), 3, {"class": n % 10}, planes=1)

    if listed:
        from shards.tables import write

        write.HELD_SAMPLES = -1
    packer.detect = lambda *_: Made()  # type: ignore[assignment, return-value]
    began = time.process_time()
    packer.pack(Path("made"), out, Settings(size=1, image="npy", val=0.0))
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"mib": round(most, 1), "cpu_s": round(time.process_time() - began, 1)}))


def indexed(count: int, out: Path) -> None:
    """An index beside the tars of others, whose scans are made as they are asked for: a line of JSON."""
    from array import array
    from collections import Counter
    from collections.abc import Sequence

    from shards.foreign import indexer
    from shards.packing.plan import Settings
    from shards.sources.base import Asked
    from shards.sources.tars.samples import Tar

    paths = [out.parent / f"{number:06d}.tar" for number in range(-(-count // 1000))]
    for path in paths:
        path.touch()

    def scans(work: Any, places: Sequence[Path], jobs: int) -> Iterator[Tar]:
        for first in range(0, count, 1000):
            some = range(first, min(first + 1000, count))
            size = len(some)
            keys, classes = [f"key-number-{n:09d}" for n in some], [n % 10 for n in some]
            starts, sizes, crcs = (
                array("q", range(size)),
                array("i", [1] * size),
                array("I", some),
            )
            given = keys, starts, sizes, crcs, {"class": classes}, {"class"}, Counter(), []
            yield Tar(1 << 20, f"{first:064x}", *given)

    indexer.map_in_order = scans  # type: ignore[assignment]
    began = time.process_time()
    indexer.index([str(path) for path in paths], out, Settings(size=8, val=0.1), Asked())
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"mib": round(most, 1), "cpu_s": round(time.process_time() - began, 1)}))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--before", type=Path)
    parser.add_argument("--samples", type=int, nargs="+", default=[20_000, 200_000])
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        count, out, how = int(given.side[0]), Path(given.side[1]), given.side[2]
        out.parent.mkdir(exist_ok=True)
        if how == "indexed":
            indexed(count, out)
        else:
            side(count, out, how == "listed")
        return
    sides = {"now": (HERE, ""), "listed": (HERE, "listed"), "indexed": (HERE, "indexed")}
    if given.before:
        sides |= {
            "before": (given.before.resolve(), ""),
            "indexed before": (given.before.resolve(), "indexed"),
        }
    found: dict[str, dict[str, Any]] = {name: {} for name in sides}
    with tempfile.TemporaryDirectory() as folder:
        for count in given.samples:
            for name, (tree, how) in sides.items():
                done = subprocess.run(
                    [sys.executable, __file__, "--side", str(count), f"{folder}/{name}{count}/out", how],
                    env=os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"},
                    cwd=tree, capture_output=True, text=True, check=True, timeout=600,
                )  # fmt: skip
                found[name][str(count)] = json.loads(done.stdout)
    few, many = min(given.samples), max(given.samples)
    for name in found if many > few else ():
        grown = found[name][str(many)]["mib"] - found[name][str(few)]["mib"]
        found[name]["bytes_a_sample"] = round(grown * 2**20 / (many - few))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
