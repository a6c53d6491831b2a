"""Readers of other people's tars, for read_shards.py: ours in place, webdataset and Megatron-Energon."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import webdataset as wds
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.loading import BATCH, collate, loaded
from shards.codec.encode import decode_source, prepare
from shards.foreign.indexer import index
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.sources import AS_IT_IS
from shards.torch import ShardStream

FOREIGN = (64, 256)
"""Edges of the JPEGs, pixels."""


def foreign_pairs(medians: dict[str, float]) -> list[tuple[str, str]]:
    """Ours and another reader of the same tars."""
    pairs = [(f"foreign{edge}", who) for edge in FOREIGN for who in ("webdataset", "energon")]
    return [(f"ours_{which}", f"{who}_{which}") for which, who in pairs if f"{who}_{which}" in medians]


def foreign(edge: int, count: int, scratch: Path) -> dict[str, Callable[[], int]]:
    """Readers of tars of JPEGs of ``edge`` pixels, prepared as 64 x 64."""
    folder = scratch / f"foreign{edge}"
    folder.mkdir()
    random = np.random.default_rng(edge)
    most = min(1000, -(-count // 2))  # of a tar: two workers want two of them
    for first in range(0, count, most):
        with wds.TarWriter(str(folder / f"{first // most:06d}.tar"), mtime=0) as writer:
            for number in range(first, min(first + most, count)):
                rough = Image.fromarray(random.integers(0, 256, (9, 9, 3), np.uint8))
                smooth = np.asarray(rough.resize((edge, edge), Image.Resampling.BICUBIC), np.int16)
                pixels = (smooth + random.integers(-8, 9, smooth.shape)).clip(0, 255).astype(np.uint8)
                stream = io.BytesIO()
                Image.fromarray(pixels).save(stream, "JPEG", quality=90)
                writer.write({"__key__": f"{number:07d}", "jpg": stream.getvalue(), "cls": number % 10})
    packed, urls = folder / "index", sorted(map(str, folder.glob("*.tar")))
    index(urls, packed, Settings(val=0), AS_IT_IS)

    def ours(threads: int) -> int:
        with ShardReader(packed, threads=threads) as reader:
            for first in range(0, count, BATCH):
                reader.read(range(first, min(first + BATCH, count)))
        return count

    # Both without end, or the one that has none would be held to account for what its workers made beyond it.
    def ours_loaded() -> int:
        loader = DataLoader(ShardStream(packed, batch=BATCH), batch_size=None, num_workers=2)
        return min(count, sum(len(batch.images) for batch in islice(loader, -(-count // BATCH))))

    def stock_loaded() -> int:
        loader = DataLoader(stock().repeat(), BATCH, num_workers=2, collate_fn=collate)
        return min(count, sum(map(len, islice(loader, -(-count // BATCH)))))

    def stock() -> Any:
        found = wds.WebDataset(urls, shardshuffle=False, nodesplitter=None)
        how = wds.handle_extension("jpg", lambda data: prepare(decode_source(data, "jpg"), "jpg", None, 64))
        return found.decode(how).to_tuple("jpg", "cls")

    return {
        f"ours_foreign{edge}": lambda: ours(1),
        f"ours_foreign{edge}_2": lambda: ours(2),
        f"ours_foreign{edge}_workers": ours_loaded,
        f"webdataset_foreign{edge}": lambda: loaded(stock(), 0),
        f"webdataset_foreign{edge}_2": stock_loaded,
        **(by_energon(folder, edge, count) if importlib.util.find_spec("megatron") else {}),
    }


def by_energon(folder: Path, edge: int, count: int) -> dict[str, Callable[[], int]]:
    """NVIDIA's Megatron-Energon over the same tars, with the same decode and resize."""
    import torch
    from megatron import energon

    class Encoder(energon.DefaultTaskEncoder):
        decoder = None

        def encode_sample(self, sample: Any) -> Any:
            image = prepare(decode_source(sample.image, "jpg"), "jpg", None, 64)
            return dataclasses.replace(sample, image=torch.from_numpy(image), label=int(sample.label))

    words = ["--non-interactive", "--split-ratio", "1,0,0", "--sample-type", "ImageClassificationSample"]
    fields = ["--field-map", json.dumps({"image": "jpg", "label": "cls"})]
    # fmt: off
    subprocess.run(
        [sys.executable, "-m", "megatron.energon.cli.main", "prepare", *words, *fields, str(folder)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    # fmt: on

    def energon_loaded(workers: int) -> int:
        data = energon.get_train_dataset(
            folder,
            worker_config=energon.WorkerConfig(rank=0, world_size=1, num_workers=workers),
            batch_size=BATCH,
            shuffle_buffer_size=None,
            max_samples_per_sequence=None,
            task_encoder=Encoder(),
        )
        batches = islice(energon.get_loader(data), -(-count // BATCH))
        return min(count, sum(len(batch.image) for batch in batches))

    return {
        f"energon_foreign{edge}": lambda: energon_loaded(0),
        f"energon_foreign{edge}_2": lambda: energon_loaded(2),
    }
