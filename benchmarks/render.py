"""How fast avatars are drawn: images a second at 500 x 500 with PNG, on all cores.

    python benchmarks/render.py [--images 600] [--rounds 5]

Compares drawing whole sets to a folder on all cores with the same in one process, with drawing alone and
with PNG encoding alone (this project's encoder, the floor, and skia's own). Rounds are interleaved, so that
a busy moment hits every contender; each figure is the median of the rounds. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import skia

from shards.standin.artwork import avatar
from shards.standin.files import labels_of, write_folder


def main() -> None:
    """Time the contenders and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=600, help="images a round")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    labels = [labels_of(0, index) for index in range(arguments.images)]
    # Encoding is timed on a sample held in memory: a million bytes an image.
    pictures = [avatar.render(row) for row in labels[:100]]

    def to_folder(jobs: int) -> int:
        with tempfile.TemporaryDirectory() as folder:
            return write_folder(Path(folder) / "set", arguments.images, 0, jobs, "flat")

    def draw_alone() -> int:
        return sum(1 for row in labels if avatar.render(row) is not None)

    def encode_alone() -> int:
        return sum(1 for picture in pictures if avatar.png_bytes(picture))

    def encode_skia() -> int:
        for picture in pictures:
            image = skia.Image.fromarray(picture, colorType=skia.kRGBA_8888_ColorType)
            image.encodeToData(skia.EncodedImageFormat.kPNG, 100)
        return len(pictures)

    contenders: dict[str, Callable[[], int]] = {
        "all_cores": lambda: to_folder(cores),
        "one_process": lambda: to_folder(1),
        "draw_alone": draw_alone,
        "png_alone": encode_alone,
        "png_alone_skia": encode_skia,
    }
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            images = contender()
            rates[name].append(images / (time.perf_counter() - started))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    report = {
        "benchmark": "render",
        "images_per_second": medians,
        "speedup_over_one_process": round(medians["all_cores"] / medians["one_process"], 2),
        "png_kilobytes": round(statistics.mean(len(avatar.png_bytes(p)) for p in pictures) / 1000, 1),
        "images": arguments.images,
        "rounds": arguments.rounds,
        "cores": cores,
        "includes": "start of the worker processes, PNG and CSV written to a temporary folder",
    }
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
