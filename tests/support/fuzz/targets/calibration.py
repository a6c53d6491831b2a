"""A calibration that somebody else measured, as a plan is given it."""

from __future__ import annotations

from pathlib import Path

from diffcore.memory import calibration
from tests.support.fuzz.target import Target

WORDS = [
    b'"context": -1',
    b'"nccl_ranks": 0',
    b'"cuda": "13"',
    b'"gpu": "a\\u0000b"',
    b"1e999",
    b'"more": {}',
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.json").write_bytes(data)
        found = calibration.calibration_named(str(folder / "x.json"))
        assert 0 <= found.context + found.workspaces + found.nccl <= 3 * 2**40 and found.measured
        assert calibration.load(folder / "x.json").gpu.isprintable()
        return found

    seeds = [path.read_bytes() for path in sorted(calibration.FOLDER.glob("*.json"))]
    return Target(seeds, feed, WORDS)
