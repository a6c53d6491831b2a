"""Damaged and hostile input by the thousand: each is read, or told in one line; nothing else.

    python benchmarks/fuzz.py [--target yaml_file --target tar ...] [--cases 50000] [--seed 0] [--keep FOLDER]

``--cases`` is how many in all, over the targets (default: all of tests/support/fuzz/targets). What must hold
of each case is in tests/support/fuzz/play.py. Every target runs in a process of its own, two at once. Prints
one JSON object: for each target how many were told, how many valid, the slowest in seconds, and what was
found; ``--keep`` writes the inputs that did it, to be kept in tests/corpora/TARGET/. Ends with 1 if anything
was found. The same seed gives the same cases.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.support.fuzz import targets
from tests.support.fuzz.play import cases, play

OUTSIDE = 3600
"""Seconds for one target."""


def one(name: str, count: int, seed: int, keep: Path | None) -> dict[str, Any]:
    """Play one target here."""
    target = targets.load(name)
    outcome = play(target, cases(target, name, count, seed))
    found = {}
    for what, data in outcome.findings.items():
        found[what] = digest = sha256(data).hexdigest()[:12]
        if keep:
            (keep / name).mkdir(parents=True, exist_ok=True)
            (keep / name / digest).write_bytes(data)
    return {
        "cases": count,
        "told": outcome.told,
        "valid": outcome.valid,
        "slowest_s": round(outcome.slowest, 3),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "found": found,
    }


def apart(name: str, count: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Play one target in a process of its own; one that dies is a finding."""
    command = [sys.executable, __file__, "--one", name, "--cases", str(count), "--seed", str(arguments.seed)]
    if arguments.keep:
        command += ["--keep", str(arguments.keep)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=OUTSIDE, env=env)
    try:
        tree: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"cases": count, "found": {f"ended with {done.returncode}": done.stderr[-3000:]}}
    return tree


def main() -> int:
    """Run the cases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--target", action="append", choices=targets.names(), help="default: all")
    parser.add_argument("--cases", type=int, default=50_000, help="in all, over the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="folder for inputs that were answered wrongly")
    parser.add_argument("--one", choices=targets.names(), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one, arguments.cases, arguments.seed, arguments.keep)))
        return 0
    names = arguments.target or targets.names()
    start = time.perf_counter()
    share = -(-arguments.cases // len(names))
    with ThreadPoolExecutor(2) as pool:
        found = dict(zip(names, pool.map(lambda name: apart(name, share, arguments), names), strict=True))
    tree = {
        "cases": share * len(names),
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "targets": found,
    }
    print(json.dumps(tree, indent=1))
    return int(any(result["found"] for result in found.values()))


if __name__ == "__main__":
    sys.exit(main())
