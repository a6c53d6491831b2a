"""How fast a data set is packed, beside the loop that people write for it: images a second.

    python benchmarks/pack_shards.py [--images 2000] [--rounds 3] [--source DIR]

Without --source a stand-in set is drawn first (shards.render). The stock loop is one process: Pillow opens an
avatar, composites it over white, crops and resizes it, and webdataset.TarWriter writes it as PNG with its
labels. shards.pack does the same with one worker and with two, and also sorts, splits, hashes, indexes, syncs
to the disk and draws a card. The contenders run one after another, each in a process of its own, in
interleaved rounds; figures are medians, with the start of our workers but without the imports of the process
itself (webdataset's take seconds). ``per_cpu_second`` counts the processor's time instead of the clock's.
``rms_error`` is how far the packed pixels of some images are from the same steps in floating point, in levels
of 255. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader

ROOT = Path(__file__).resolve().parents[1]
SIZE, CROP = 64, 360
CHECKED = 50  # images whose pixels are compared


def main() -> None:
    """Time the contenders and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--source", type=Path, help="a folder of csX.png and csX.csv; else one is drawn")
    parser.add_argument("--one", metavar="CONTENDER", help=argparse.SUPPRESS)  # with --source and --out
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(*seconds(arguments.one, arguments.source, arguments.out))
        return
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(arguments, Path(scratch)), indent=2))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The whole report."""
    source = some_of(arguments.source or drawn(arguments.images, scratch), arguments.images, scratch)
    count = len(list(source.glob("*.png")))
    rates: dict[str, list[float]] = {name: [] for name in ("stock", "ours_1", "ours_2")}
    by_cpu: dict[str, list[float]] = {name: [] for name in ("stock", "ours_1")}
    made: dict[str, Path] = {}
    for turn in range(arguments.rounds):
        for name in rates:
            made[name] = scratch / f"{name}-{turn}"
            command = [sys.executable, __file__, "--one", name, "--source", source, "--out", made[name]]
            done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
            wall, cpu = map(float, done.stdout.split())
            rates[name].append(count / wall)
            if name in by_cpu:
                by_cpu[name].append(count / cpu)
    medians, cpu_medians = (
        {name: round(statistics.median(values), 1) for name, values in some.items()}
        for some in (rates, by_cpu)
    )
    return {
        "benchmark": "pack_shards",
        "images_per_second": medians,
        "ratio_one": round(medians["ours_1"] / medians["stock"], 2),
        "ratio_two": round(medians["ours_2"] / medians["stock"], 2),
        "per_cpu_second": cpu_medians,
        "ratio_per_cpu_second": round(cpu_medians["ours_1"] / cpu_medians["stock"], 2),
        "megabytes": {
            "stock": round(made["stock"].stat().st_size / 1e6, 2),
            "ours": round(sum(path.stat().st_size for path in made["ours_1"].glob("*.tar")) / 1e6, 2),
        },
        "rms_error": errors(source, made["stock"], made["ours_1"]),
        "images": count,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }


def seconds(contender: str, source: Path, out: Path) -> tuple[float, float]:
    """How long one contender takes, by the clock and in CPU time of this process."""
    import webdataset  # noqa: F401 - before the clock starts; and here, so that no worker of ours imports it

    started = time.perf_counter(), time.process_time()
    if contender == "stock":
        stock_loop(source, out)
    else:
        jobs = int(contender.removeprefix("ours_"))
        pack(source, out, Settings(size=SIZE, crop=CROP, val=0), jobs=jobs)
    return time.perf_counter() - started[0], time.process_time() - started[1]


def drawn(images: int, scratch: Path) -> Path:
    """A stand-in set."""
    command = [sys.executable, "-m", "shards.render", "--out", scratch / "drawn", "--count", images]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return scratch / "drawn"


def some_of(source: Path, images: int, scratch: Path) -> Path:
    """The first avatars of ``source``, as links."""
    folder = scratch / "source"
    folder.mkdir()
    for path in sorted(source.glob("*.png"))[:images]:
        for half in (path, path.with_suffix(".csv")):
            (folder / half.name).symlink_to(half.resolve())
    return folder


def stock_loop(source: Path, out: Path) -> None:
    """What a user of Pillow and webdataset writes."""
    import webdataset as wds

    with wds.TarWriter(str(out)) as tar:
        for path in sorted(source.glob("*.png")):
            with Image.open(path) as avatar:
                white = Image.new("RGBA", avatar.size, "white")
                flat = Image.alpha_composite(white, avatar.convert("RGBA")).convert("RGB")
            left, top = (flat.width - CROP) // 2, (flat.height - CROP) // 2
            square = flat.crop((left, top, left + CROP, top + CROP))
            stream = io.BytesIO()
            square.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(stream, "PNG")
            with path.with_suffix(".csv").open(newline="") as file:
                labels = {row[0]: int(row[1]) for row in csv.reader(file, skipinitialspace=True)}
            tar.write({"__key__": path.stem, "png": stream.getvalue(), "json": labels})


def errors(source: Path, stock: Path, ours: Path) -> dict[str, float]:
    """Root mean square errors, against the same steps in floating point."""
    import webdataset as wds

    by_stock = {}
    for sample in wds.WebDataset(str(stock), shardshuffle=False).decode("rgb8"):
        by_stock[sample["__key__"]] = sample["png"]
        if len(by_stock) == CHECKED:
            break
    with ShardReader(ours, order="sequential") as reader:
        batch = reader.read(range(len(reader)))
    by_us = dict(zip(batch.keys, batch.images, strict=True))
    exact = {key: in_floats(source / f"{key}.png") for key in by_stock}
    return {
        name: round(float(np.sqrt(np.mean([(found[key] - exact[key]) ** 2 for key in exact]))), 3)
        for name, found in (("stock", by_stock), ("ours", by_us))
    }


def in_floats(path: Path) -> np.ndarray:
    """Composite, crop and bicubic antialiased resize without rounding in between: [SIZE, SIZE, 3]."""
    with Image.open(path) as avatar:
        pixels = np.asarray(avatar.convert("RGBA"), np.float32)
    top, left = ((edge - CROP) // 2 for edge in pixels.shape[:2])
    alpha = pixels[..., 3:] / 255
    flat = (pixels[..., :3] * alpha + 255 * (1 - alpha))[top : top + CROP, left : left + CROP]
    bands = [
        Image.fromarray(np.ascontiguousarray(flat[..., band])).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
        for band in range(3)
    ]
    return np.stack(bands, -1).clip(0, 255)


if __name__ == "__main__":
    main()
