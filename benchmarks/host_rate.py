"""Images a second that one core makes ready for a GPU, without a model: 64 x 64 and 256 x 256 pixels.

    python benchmarks/host_rate.py [--images 1000] [--batch 128] [--rounds 8]

A stand-in set is drawn and packed (shards.render, shards.pack), as PNG and as raw pixels, and read in
shuffled order from a warm cache. Sides, in turns in one process with one thread:

read      samples are read and decoded, and no more;
new       what a GPU is sent: pixels as bytes, labels and positions (``diffusion.draws: 2``);
new_cpu   the whole micro batch of the same draws, as on a CPU: signal, noise, timesteps, drops;
old       the whole micro batch with NumPy's draws (``draws: 1``), as it was sent before.

Prints one JSON object: for each size and encoding the medians of images per second of CPU time, new over old,
new_cpu over old, and the bytes that an image is sent as.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from diffcore.config import configure
from diffcore.config.tree import Config
from diffcore.runs.data import training_reader
from diffcore.training.batches import made, read_samples
from shards.read import ShardReader

ROOT = Path(__file__).resolve().parents[1]
SIZES, ENCODINGS = (64, 256), ("png", "npy")


def main() -> None:
    """Time the sides and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=1000, help="drawn and packed")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=8)
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "source"
        call("shards.render", "--out", source, "--count", given.images)
        report: dict[str, Any] = {}
        for size in SIZES:
            for encoding in ENCODINGS:
                folder = Path(scratch) / f"{encoding}{size}"
                call("shards.pack", source, "--out", folder, "--size", size, "--image", encoding)
                report[f"{size} {encoding}"] = measure(folder, given.batch, given.rounds)
    print(json.dumps(report, indent=2))


def call(module: str, *rest: object) -> None:
    command = [sys.executable, "-m", module, *map(str, rest)]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def measure(folder: Path, batch: int, rounds: int) -> dict[str, Any]:
    """One entry of the report."""
    overrides = {"data": {"path": folder, "threads": 1}, "batch": {"size": batch, "micro": batch}}
    newest = configure.load(ROOT / "configs" / "demo-adamw.yaml", overrides)
    first = configure.replace(newest, "diffusion", {"draws": 1})
    with training_reader(newest) as reader:
        sides = sides_of(newest, first, reader)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for k in range(rounds + 1):
            for name in sorted(sides, reverse=bool(k % 2)):  # what comes first fills the caches
                at = np.arange(k * batch, (k + 1) * batch)
                began = time.process_time()
                sides[name](at)
                if k:  # the first warms up
                    seconds[name].append(time.process_time() - began)
        samples = read_samples(newest, reader, np.arange(batch))
        whole = made(first, samples)
    rates = {name: batch / statistics.median(taken) for name, taken in seconds.items()}
    sent, before = (sum(x.nbytes for x in some.tensors) // batch for some in (samples, whole))
    return {
        "images_per_core_second": {name: round(rate) for name, rate in rates.items()},
        "new_over_old": round(rates["new"] / rates["old"], 2),
        "new_cpu_over_old": round(rates["new_cpu"] / rates["old"], 2),
        "bytes_an_image": {"new": sent, "old": before},
    }


def sides_of(newest: Config, first: Config, reader: ShardReader) -> dict[str, Callable[[np.ndarray], object]]:
    """What is timed, by name."""
    return {
        "read": reader.read,
        "new": lambda at: read_samples(newest, reader, at),
        "new_cpu": lambda at: made(newest, read_samples(newest, reader, at)),
        "old": lambda at: made(first, read_samples(first, reader, at)),
    }


if __name__ == "__main__":
    main()
