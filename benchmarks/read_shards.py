"""How fast packed images are read, beside other readers of the same images: images a second at 64 x 64.

    python benchmarks/read_shards.py [--images 10000] [--rounds 3] [--data DIR]

Without --data a stand-in set is drawn and packed first (shards.render, shards.pack). Contenders run one after
another in this process, in interleaved rounds, so that a busy moment hits every one; figures are medians.
The cache is warm. "_2" means two threads (here) or two worker processes of a DataLoader (the others).
mosaicml-streaming and litdata take part where they are installed. Prints one JSON object, with the ratios,
the bare decoder's speed and the share of it that the reader reaches, and for each order how far its
neighbours are apart and how many reads a MiB takes.
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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from shards import order
from shards.fast_decode import decoder
from shards.order import ORDERS, Extent, Order
from shards.prefetch import prefetch
from shards.read import ShardReader

ROOT = Path(__file__).resolve().parents[1]
BATCH = 256


class Folder(Dataset):
    """Image files, as people read them with Pillow."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(folder.glob("*.png"))

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> np.ndarray:
        with Image.open(self.paths[number]) as image:
            return np.asarray(image.convert("RGB"))


def by_opencv(data: bytes) -> np.ndarray:
    """PNG to RGB."""
    import cv2

    return cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)


def collate(rows: list[Any]) -> np.ndarray:
    """Arrays to one batch, without the detour over tensors."""
    return np.stack([row[0] if isinstance(row, tuple | list) else row for row in rows])


def webdataset_of(folder: Path, how: str) -> Any:
    """The same shards by stock webdataset."""
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    found = wds.WebDataset(urls, shardshuffle=False, nodesplitter=None)
    how_to = wds.handle_extension("png", by_opencv) if how == "cv2" else "rgb8"
    return found.decode(how_to).to_tuple("png", "json")


def main() -> None:
    """Time the contenders and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--data", type=Path, help="a folder packed as png; else one is made")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(measure(arguments, Path(scratch)), indent=2))


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, Any]:
    """The whole report."""
    data: Path = arguments.data or made(arguments.images, scratch)
    with ShardReader(data, order="sequential") as reader:
        count = min(len(reader), arguments.images)
        files, members = extracted(reader, count, scratch)
        raw = packed_raw(reader, count, scratch)
    out = np.empty((reader.size, reader.size, 3), np.uint8)
    decode = decoder("png")

    def bare() -> int:
        for member in members:
            decode(member, out)
        return len(members)

    def ours(folder: Path, threads: int) -> int:
        with ShardReader(folder, threads=threads) as reader:
            for first in range(0, count, BATCH):
                reader.read(range(first, min(first + BATCH, count)))
        return count

    def ours_ahead() -> int:
        with ShardReader(data, threads=2) as reader:
            steps = (range(first, min(first + BATCH, count)) for first in range(0, count, BATCH))
            return sum(len(batch.keys) for batch in prefetch(reader.read, steps, 4))

    def loaded(source: Any, workers: int) -> int:
        return sum(map(len, DataLoader(source, BATCH, num_workers=workers, collate_fn=collate)))

    contenders: dict[str, Callable[[], int]] = {
        "bare_decoder": bare,
        "ours_png": lambda: ours(data, 1),
        "ours_png_2": lambda: ours(data, 2),
        "ours_png_2_prefetch": ours_ahead,
        "webdataset": lambda: loaded(webdataset_of(data, "rgb8"), 0),
        "webdataset_2": lambda: loaded(webdataset_of(data, "rgb8"), 2),
        "webdataset_cv2": lambda: loaded(webdataset_of(data, "cv2"), 0),
        "webdataset_cv2_2": lambda: loaded(webdataset_of(data, "cv2"), 2),
        "pil_folder": lambda: loaded(Folder(files), 0),
        "pil_folder_2": lambda: loaded(Folder(files), 2),
    }
    if raw is not None:
        contenders["ours_npy"] = lambda: ours(raw, 1)
        contenders["ours_npy_2"] = lambda: ours(raw, 2)
    contenders.update(others(members, scratch))

    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(arguments.rounds):
        for name, contender in contenders.items():
            started = time.perf_counter()
            images = contender()
            rates[name].append(images / (time.perf_counter() - started))
    medians = {name: round(statistics.median(values), 1) for name, values in rates.items()}
    one, two = medians["ours_png"], medians["ours_png_2"]
    return {
        "benchmark": "read_shards",
        "images_per_second": medians,
        "ratios_one": {
            n: round(one / m, 2) for n, m in medians.items() if n[:4] != "ours" and n[-2:] != "_2"
        },
        "ratios_two": {
            n: round(two / m, 2) for n, m in medians.items() if n[:4] != "ours" and n[-2:] == "_2"
        },
        "share_of_bare_decoder": round(one / medians["bare_decoder"], 3),
        "orders": {name: quality(name) for name in ORDERS},
        "resume_ms": resume_ms(),
        "images": count,
        "rounds": arguments.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
        "absent": [name for name in ("streaming", "litdata") if importlib.util.find_spec(name) is None],
    }


def made(images: int, scratch: Path) -> Path:
    """A stand-in set, drawn and packed."""
    for module, *rest in (
        ("shards.render", "--out", scratch / "source", "--count", images),
        ("shards.pack", scratch / "source", "--out", scratch / "packed", "--val", 0),
    ):
        command = [sys.executable, "-m", module, *map(str, rest)]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return scratch / "packed"


def extracted(reader: ShardReader, count: int, scratch: Path) -> tuple[Path, list[bytes]]:
    """The images as files in a folder, and as bytes."""
    folder, members = scratch / "files", []
    folder.mkdir()
    for number in range(count):
        row = reader.split.samples[number]
        shard = reader.split.shards[int(reader.split.shard_of(np.array([number]))[0])]
        with (reader.index.folder / shard.name).open("rb") as file:
            file.seek(int(row["image_offset"]))
            members.append(file.read(int(row["image_bytes"])))
        (folder / f"{number:07d}.png").write_bytes(members[-1])
    return folder, members


def packed_raw(reader: ShardReader, count: int, scratch: Path) -> Path | None:
    """The same images packed as npy; None where the set was not drawn here."""
    source = scratch / "source"
    if not source.is_dir():
        return None
    command = [sys.executable, "-m", "shards.pack", source, "--out", scratch / "raw", "--val", "0"]
    subprocess.run([*map(str, command), "--image", "npy"], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return scratch / "raw"


def others(members: list[bytes], scratch: Path) -> dict[str, Callable[[], int]]:
    """Readers of formats of their own, decoding with OpenCV, where they are installed."""
    found: dict[str, Callable[[], int]] = {}
    if importlib.util.find_spec("streaming"):
        from streaming import MDSWriter, StreamingDataset

        with MDSWriter(out=str(scratch / "mds"), columns={"png": "bytes"}) as writer:
            for member in members:
                writer.write({"png": member})
        found["mosaicml_cv2"] = lambda: sum(
            len(by_opencv(row["png"])) > 0
            for row in StreamingDataset(local=str(scratch / "mds"), shuffle=False, batch_size=BATCH)
        )
    if importlib.util.find_spec("litdata"):
        import litdata

        def rows(number: int) -> Iterator[dict[str, bytes]]:
            yield {"png": members[number]}

        litdata.optimize(
            rows, list(range(len(members))), str(scratch / "lit"), num_workers=1, chunk_bytes="64MB"
        )
        found["litdata_cv2"] = lambda: sum(
            len(by_opencv(row["png"])) > 0 for row in litdata.StreamingDataset(str(scratch / "lit"))
        )
    return found


def quality(name: str) -> dict[str, float]:
    """Of one epoch of a million samples in shards of 1000, 5.4 KB each."""
    count, shard, size = 1_000_000, 1000, 5400
    numbers = Order(name, 0, Extent(count, shard)).sample_of(np.arange(count))
    width = {"block": order.WINDOW, "shards": order.WINDOW // shard * shard}.get(name, BATCH)
    runs = 0
    for first in range(0, count, width):
        mine = np.sort(numbers[first : first + width])
        runs += 1 + int(((np.diff(mine) > 1) | (np.diff(mine // shard) > 0)).sum())
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
