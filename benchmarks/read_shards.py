"""How fast packed images are read, beside other readers of the same images: images a second at 64 x 64.

    python benchmarks/read_shards.py [--images 10000] [--rounds 3] [--data DIR --webp DIR --raw DIR]

Without --data a stand-in set is drawn and packed first (shards.render, shards.pack), as PNG, WebP and raw
pixels. Contenders run one after another in this process, in interleaved rounds, so that a busy moment hits
every one; figures are medians. The cache is warm and every contender makes batches of 256. Ours are shuffled
(order full), but for those "in_order"; the others read in order. "_2" means two threads (here) or two worker
processes of a DataLoader (the others, and ours as "_workers"), whose start counts. "ours_torch" is a loader
of shards.torch's ShardStream, with as many workers as the webdataset beside it ("_1", "_2"). What needs
OpenCV, mosaicml-streaming or litdata takes part where they are installed. Prints one JSON object: the rates;
our rate over each other's; the limits, which are reading the bytes alone, decoding alone, by OpenCV and by
our own decoder, and one after the other, with the share of that which we reach; and for each order how far
its neighbours are apart and how many reads a MiB takes.

"foreign64" and "foreign256" are tars of JPEGs of so many pixels, as webdataset writes them: ours reads them
in place by an index of shards.index, webdataset (and Megatron-Energon, where it is installed) decodes and
resizes them by the same functions.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.foreign_tars import FOREIGN, foreign, foreign_pairs
from benchmarks.loading import BATCH, loaded
from shards import order
from shards.codec import ENCODINGS
from shards.codec.fast_decode import decoder
from shards.order import ORDERS, Extent, Order
from shards.prefetch import prefetch
from shards.read import ShardReader
from shards.torch import ShardStream

ROOT = Path(__file__).resolve().parents[1]


class Folder(Dataset):
    """Image files, as people read them with Pillow."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        with Image.open(self.paths[number]) as image:
            return np.asarray(image.convert("RGB"))


class Steps(Dataset):
    """Our batches, one an item: any worker of a DataLoader makes any of them."""

    def __init__(self, folder: Path, count: int) -> None:
        self.count, self.reader = count, ShardReader(folder)

    def __len__(self) -> int:
        return -(-self.count // BATCH)

    def __getitem__(self, step: int) -> np.ndarray:
        return self.reader.read(range(step * BATCH, min((step + 1) * BATCH, self.count))).images


def by_opencv(data: bytes) -> np.ndarray:
    """PNG to RGB."""
    import cv2

    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def webdataset_of(folder: Path, how: str, member: str = "png") -> Any:
    """The same shards by stock webdataset."""
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    found = wds.WebDataset(urls, shardshuffle=False, nodesplitter=None)
    how_to = wds.handle_extension("png", by_opencv) if how == "cv2" else "rgb8"
    return found.decode(how_to).to_tuple(member, "json")


def main() -> None:
    """Time the contenders and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=10_000, help="drawn where no --data is given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--foreign", type=int, default=2000, help="images in the tars of others")
    parser.add_argument("--data", type=Path, help="a folder packed as png; else one is made")
    parser.add_argument("--webp", type=Path, help="the same packed as webp")
    parser.add_argument("--raw", type=Path, help="the same packed as npy")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch  # mosaicml-streaming leaves its locks there
        print(json.dumps(measure(arguments, Path(scratch)), indent=2))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The whole report."""
    folders: dict[str, Path] = {"png": arguments.data, "webp": arguments.webp, "npy": arguments.raw}
    folders = {name: folder for name, folder in folders.items() if folder}
    folders = folders or made(arguments.images, scratch)
    with ShardReader(folders["png"], order="sequential") as reader:
        count = len(reader)
        files, members = extracted(reader, count, scratch)
        pixels = reader.read(range(count)).images
    out = np.empty(pixels.shape[1:], np.uint8)

    def alone(decode: Callable[[bytes], object]) -> int:
        for member in members:
            decode(member)
        return len(members)

    def ours(encoding: str, threads: int, order: str = "full") -> int:
        with ShardReader(folders[encoding], order=order, threads=threads) as reader:
            for first in range(0, count, BATCH):
                reader.read(range(first, min(first + BATCH, count)))
        return count

    def ours_loaded(encoding: str) -> int:
        steps = Steps(folders[encoding], count)
        with steps.reader:
            return sum(map(len, DataLoader(steps, None, num_workers=2)))

    def ours_torch(workers: int) -> int:
        loader = DataLoader(ShardStream(folders["png"], batch=BATCH), batch_size=None, num_workers=workers)
        return min(count, sum(len(batch.images) for batch in islice(loader, -(-count // BATCH))))

    def ours_ahead() -> int:
        with ShardReader(folders["png"], threads=2) as reader:
            steps = (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
            return sum(len(batch.keys) for batch in prefetch(reader.read, steps, 4))

    ours_decode = decoder("png")
    contenders: dict[str, Callable[[], int]] = {
        "decoder_alone": lambda: alone(lambda member: ours_decode(member, out)),
        "ours_png_2_prefetch": ours_ahead,
    }
    if opencv := importlib.util.find_spec("cv2") is not None:
        contenders["opencv_alone"] = lambda: alone(by_opencv)
    for name in folders:
        contenders[f"bytes_alone_{name}"] = lambda name=name: bytes_alone(folders[name], count)
        contenders[f"ours_{name}_in_order"] = lambda name=name: ours(name, 1, "sequential")
        contenders[f"ours_{name}_workers"] = lambda name=name: ours_loaded(name)
        for threads in (1, 2):
            ending = "" if threads == 1 else "_2"
            contenders[f"ours_{name}{ending}"] = lambda name=name, threads=threads: ours(name, threads)
    png = folders["png"]
    sources: dict[str, Callable[[], Any]] = {
        "webdataset": lambda: webdataset_of(png, "rgb8"),
        "pil_folder": lambda: Folder(files),
    }
    if "npy" in folders:
        sources["webdataset_raw"] = lambda: webdataset_of(folders["npy"], "rgb8", "npy")
    if opencv:
        sources["webdataset_cv2"] = lambda: webdataset_of(png, "cv2")
    for workers in (0, 1, 2):
        ending = f"_{workers}" if workers else ""
        contenders[f"ours_torch{ending}"] = lambda workers=workers: ours_torch(workers)
        for name, source in sources.items():
            contenders[name + ending] = lambda source=source, workers=workers: loaded(source(), workers)
        if workers == 1:
            continue
        for name, contender in others(members, pixels, workers, scratch).items():
            contenders[name + ending] = contender

    counts = dict.fromkeys(contenders, count)
    for edge in FOREIGN:
        more = foreign(edge, min(count, arguments.foreign), scratch)
        counts |= dict.fromkeys(more, min(count, arguments.foreign))
        contenders |= more

    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            images = contender()
            assert images == counts[name], name
            rates[name].append(images / (time.perf_counter() - started))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    limit = 1 / (1 / medians["bytes_alone_png"] + 1 / medians["decoder_alone"])
    return {
        "benchmark": "read_shards",
        "images_per_second": medians,
        "ratios": ratios(medians),
        "ratios_in_order": ratios(medians, "_in_order"),
        # Ours is the better of one thread and two: of small images the threads mostly wait for each other.
        "ratios_foreign_one_process": {
            name: round(max(medians[ours], medians[f"{ours}_2"]) / medians[name], 2)
            for ours, name in foreign_pairs(medians)
        },
        "ratios_foreign_two_workers": {
            name: round(medians[f"{ours}_workers"] / medians[f"{name}_2"], 2)
            for ours, name in foreign_pairs(medians)
        },
        "ratios_torch": {
            name + ending: round(medians[f"ours_torch{ending}"] / medians[name + ending], 2)
            for name in ("webdataset", "webdataset_cv2")
            for ending in ("", "_1", "_2")
            if name + ending in medians
        },
        "share_of_opencv_alone": round(medians["ours_png"] / medians["opencv_alone"], 3) if opencv else None,
        "share_of_decoder_alone": round(medians["ours_png"] / medians["decoder_alone"], 3),
        "limit_png": round(limit, 1),
        "share_of_limit": round(medians["ours_png"] / limit, 3),
        "orders": {name: quality(name) for name in ORDERS},
        "resume_ms": resume_ms(),
        "images": count,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "absent": [
            name
            for name in ("streaming", "litdata", "megatron", "deflate", "cv2")
            if not importlib.util.find_spec(name)
        ],
    }


def ratios(medians: dict[str, float], ending: str = "") -> dict[str, float]:
    """Our rate over that of each other reader of the same content, with as many cores; in order, with one."""
    found = {}
    for name, rate in medians.items():
        two = name.endswith("_2")
        if (
            "alone" in name
            or "foreign" in name
            or name.startswith("ours")
            or name.endswith("_1")
            or (two and ending)
        ):
            continue
        ours = f"ours_{'npy' if '_raw' in name else 'png'}{ending}{'_2' * two}"
        if ours in medians:
            found[name] = round(medians[ours] / rate, 2)
    return found


def made(images: int, scratch: Path) -> dict[str, Path]:
    """A stand-in set, drawn and packed in each encoding."""

    def run(module: str, *rest: object) -> None:
        command = [sys.executable, "-m", module, *map(str, rest)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)

    source = scratch / "source"
    run("shards.render", "--out", source, "--count", images)
    for encoding in ENCODINGS:
        run("shards.pack", source, "--out", scratch / encoding, "--val", 0, "--image", encoding)
    return {encoding: scratch / encoding for encoding in ENCODINGS}


def bytes_alone(folder: Path, count: int) -> int:
    """Read the bytes of shuffled images, one by one, and do nothing with them."""
    with ShardReader(folder) as reader:
        numbers = reader.sample_of(range(count))
        table, split = reader.split.take(numbers), reader.split
        files = [os.open(folder / shard.name, os.O_RDONLY) for shard in split.shards]
        places = zip(
            split.shard_of(numbers).tolist(),
            table["image_bytes"].tolist(),
            table["image_offset"].tolist(),
            strict=True,
        )
        for shard, size, offset in places:
            os.pread(files[shard], size, offset)
        for file in files:
            os.close(file)
    return count


def extracted(reader: ShardReader, count: int, scratch: Path) -> tuple[Path, list[bytes]]:
    """The images as files in a folder, and as bytes."""
    folder, members = scratch / "files", []
    folder.mkdir()
    for number in range(count):
        row = reader.split.table.part(number, 1)[0]
        shard = reader.split.shards[int(reader.split.shard_of(np.array([number]))[0])]
        with (reader.index.folder / shard.name).open("rb") as file:
            file.seek(int(row["image_offset"]))
            members.append(file.read(int(row["image_bytes"])))
        (folder / f"{number:07d}.png").write_bytes(members[-1])
    return folder, members


def rows_by_opencv(rows: list[Any]) -> np.ndarray:
    """A batch of rows that hold a PNG."""
    return np.stack([by_opencv(row["png"]) for row in rows])


def rows_raw(rows: list[Any]) -> np.ndarray:
    """A batch of rows that hold pixels."""
    return np.stack([row["raw"] for row in rows])


def others(
    members: list[bytes], pixels: np.ndarray, workers: int, scratch: Path
) -> dict[str, Callable[[], int]]:
    """Readers of formats of their own, PNG decoded by OpenCV, and raw pixels, where they are installed."""
    found: dict[str, Callable[[], int]] = {}
    if importlib.util.find_spec("streaming"):
        from streaming import MDSWriter, StreamingDataset

        mds = scratch / f"mds-{workers}"  # a folder of it serves one data set of a process
        with MDSWriter(out=str(mds), columns={"png": "bytes"}) as writer:
            for member in members:
                writer.write({"png": member})
        data = StreamingDataset(local=str(mds), shuffle=False, batch_size=BATCH)
        found["mosaicml_cv2"] = lambda: sum(
            map(len, DataLoader(data, BATCH, num_workers=workers, collate_fn=rows_by_opencv))
        )
    if importlib.util.find_spec("litdata"):
        import litdata
        from litdata.streaming.cache import Cache

        for name, rows, collate_rows in (
            ("litdata_cv2", [{"png": member} for member in members], rows_by_opencv),
            ("litdata_raw", [{"raw": image} for image in pixels], rows_raw),
        ):
            folder = str(scratch / f"{name}-{workers}")
            cache = Cache(folder, chunk_bytes="64MB")
            for number, row in enumerate(rows):
                cache[number] = row
            cache.done()
            cache.merge()
            source = litdata.StreamingDataset(folder)
            found[name] = lambda source=source, collate_rows=collate_rows: sum(
                map(
                    len,
                    litdata.StreamingDataLoader(
                        source, batch_size=BATCH, num_workers=workers, collate_fn=collate_rows
                    ),
                )
            )
    return found


def quality(name: str) -> dict[str, float]:
    """Of one epoch of a million samples in shards of 1000, 5.4 KB each."""
    count, shard, size = 1_000_000, 1000, 5400
    stream, places = Order(name, 0, Extent(count, shard, size), batch=BATCH), np.arange(count)
    numbers = stream.sample_of(places)
    width = {"block": order.WINDOW, "shards": order.WINDOW // shard * shard}.get(name, BATCH)
    windows = places // width
    if stream.streams is not None:
        windows = stream.streams.split(places)[1] * count + stream.streams.bounds(places)[0]
    by_window = np.lexsort([numbers, windows])
    mine, of = numbers[by_window], windows[by_window]
    cuts = (np.diff(mine) > 1) | (np.diff(mine // shard) > 0) | (np.diff(of) != 0)
    runs = 1 + int(cuts.sum())
    return {
        "neighbours_position_correlation": round(float(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]), 4),
        "neighbours_of_one_shard": round(float(np.mean(numbers[:-1] // shard == numbers[1:] // shard)), 4),
        "reads_per_mib": round(runs / (count * size / 2**20), 2),
    }


def resume_ms() -> float:
    """From nothing to the samples of the batch at 90 % of a million, the index being open."""
    started = time.perf_counter()
    stream = Order("full", 0, Extent(1_000_000, 1000))
    stream.sample_of(np.arange(900_000, 900_000 + BATCH))
    return round((time.perf_counter() - started) * 1000, 2)


if __name__ == "__main__":
    main()
