"""A sweep's file over a shipped config: each point is a run of its own, below the sweep's."""

from __future__ import annotations

from pathlib import Path

from diffbase.files import REPOSITORY
from launch.ask import sweep
from tests.support.fuzz.target import Target

CONFIG = REPOSITORY / "configs" / "demo.yaml"
SEEDS = [
    b"optimizer.lr: [1.0e-4, 3.0e-4]\n",
    b"- {seed: 1, model.channels: [8, 16], model.attention_levels: [1]}\n- {seed: 2, data.path: x}\n",
]
WORDS = [
    b"run: [a, b]\n",
    b"config: [a, b]\n",
    b"help: [1, 2]\n",
    b"seed=1: [1, 2]\n",
    b"[" + b"1," * 500 + b"1]",
]
WORDS += [
    b"engine: [{}, {zero: 2}]\n",
    b"optimizer: ['{', '[']\n",
    b"'-h': [1, 2]\n",
    b'["a\\nb", "-x"]',
    b"-",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "x.yaml").write_bytes(data)
        points = sweep.load(folder / "x.yaml", CONFIG, ["--run", "runs/s"])
        assert {point.config.run.parent for point in points} == {folder / "runs" / "s"}
        return points

    return Target(SEEDS, feed, WORDS)
