"""Damaged input by the thousand: each CSV, image, tar and index gives an InputError or a valid result.

    python benchmarks/fuzz_shards.py [--cases 10000] [--seed 0]

Takes small whole files, changes, cuts, doubles or drops some of their bytes, and hands them to the code that
meets such files: ``csv`` (labels), ``png``, ``one_filter`` (PNG as the packer writes it), ``jpeg``, ``webp``
(source images), ``tar`` and ``cifar`` (source archives), ``member`` (packed images), ``shard`` (a packed
folder with one damaged shard, as shards.verify sees it), ``index`` and ``table`` (index.json and a sample
table, with hashes that fit). Anything else than a typed error or a valid result ends the run with the kind
and number of the case: the same seed gives it again.
Prints one JSON object: for each kind how many were told, how many valid, and the slowest in seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import random
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image

from diffbase.cli import InputError
from shards.codec import ENCODINGS, png
from shards.codec.decode import BadSample, decode_image
from shards.codec.encode import encode_pixels, prepare_image
from shards.codec.fast_decode import decoder
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.packing.verifier import problems
from shards.schema import CARTOON_SET
from shards.sources.base import KEY
from shards.sources.cartoon_csv import format_csv, parse_csv
from shards.sources.cartoonset import CartoonArchive
from shards.sources.cifar10 import CLASSES, CifarArchive
from shards.table import FILE

# Numbers that sizes, counts and offsets are replaced with.
EDGES = [
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff" * 4,
    b"\x80",
    b"-1",
    b"99999999999",
    b"7777777",
    b"[" * 40,
]


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to four changes: flipped bits, other bytes, a lost, doubled or moved piece, a cut end."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(len(out) + 1)
        piece = slice(place, place + rng.choice([1, 2, 4, 16, 512]))
        match rng.randrange(7):
            case 0 if place < len(out):
                out[place] ^= 1 << rng.randrange(8)
            case 1:
                out[piece] = rng.randbytes(len(out[piece]))
            case 2:
                del out[piece]
            case 3:
                out[place:place] = out[piece]
            case 4:
                out[place:place] = rng.choice(EDGES)
            case 5:
                edge = rng.choice(EDGES)
                out[place : place + len(edge)] = edge
            case 6 if rng.random() < 0.3:
                del out[place:]
    return bytes(out)


class Fuzzer:
    """Whole files of each kind, and what takes a damaged one: it returns True for a valid result, False for
    one that was told, and raises for anything else. ``folder`` is for its files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        rng = np.random.default_rng(0)
        smooth = Image.fromarray(rng.integers(0, 256, (5, 5, 4), np.uint8)).resize((24, 20))
        self.csv = format_csv({a.name: a.variants - 1 for a in CARTOON_SET}).encode()
        self.images = {
            "png": _saved(smooth, "PNG"),
            "one_filter": png.encode(np.asarray(smooth)),
            "jpeg": _saved(smooth.convert("RGB"), "JPEG"),
            "webp": _saved(smooth, "WEBP"),
        }
        self.tar = _tar(
            [
                (f"s/cs{n}.{end}", data)
                for n in (1, 2)
                for end, data in (("png", self.images["png"]), ("csv", self.csv))
            ]
        )
        record = bytes([3]) + rng.bytes(3072)
        batches = [(f"b/data_batch_{n}.bin", record) for n in range(1, 6)]
        self.cifar = _tar([("b/batches.meta.txt", "\n".join(CLASSES).encode()), *batches])
        self.pixels = np.asarray(smooth.convert("RGB"))

        source = folder / "source"
        for name in ("ant", "bee"):
            (source / name).mkdir(parents=True)
            for number in range(8):
                noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                noise.save(source / name / f"{number}.png")
        self.packed = folder / "packed"
        pack(source, self.packed, Settings(size=4, val=0.0, shard_size=8))
        self.whole = {path.name: path.read_bytes() for path in self.packed.iterdir()}
        self.kinds: dict[str, Callable[[random.Random], bool]] = {
            "csv": self._csv,
            **{name: self._image(name) for name in self.images},
            "tar": self._archive(self.tar, CartoonArchive),
            "cifar": self._archive(self.cifar, CifarArchive),
            "member": self._member,
            "shard": self._shard,
            "index": self._index,
            "table": self._table,
        }

    def _csv(self, rng: random.Random) -> bool:
        path = self.folder / "x.csv"
        path.write_bytes(mutate(self.csv, rng))
        try:
            labels = parse_csv(path)
        except InputError:
            return False
        assert [a.name for a in CARTOON_SET] == list(labels)
        assert all(0 <= labels[a.name] < a.variants for a in CARTOON_SET)
        return True

    def _image(self, name: str) -> Callable[[random.Random], bool]:
        def run(rng: random.Random) -> bool:
            try:
                packed = prepare_image(mutate(self.images[name], rng), "x", crop=None, size=8)
            except InputError as error:
                assert "\n" not in str(error)
                return False
            decode_image(packed, np.empty((8, 8, 3), np.uint8))
            return True

        return run

    def _archive(self, whole: bytes, adapter: Any) -> Callable[[random.Random], bool]:
        def run(rng: random.Random) -> bool:
            path = self.folder / "x.tar"
            path.write_bytes(mutate(whole, rng))
            try:
                samples = list(adapter(path).samples())
            except InputError:
                return False
            assert samples and all(KEY.fullmatch(sample.key) for sample in samples)
            assert len({sample.key for sample in samples}) == len(samples)
            variants = {a.name: a.variants for a in adapter.schema}
            assert all(0 <= v < variants[name] for s in samples for name, v in s.labels.items())
            return True

        return run

    def _member(self, rng: random.Random) -> bool:
        encoding = rng.choice(ENCODINGS)
        decode = rng.choice([decoder(encoding), partial(decode_image, encoding=encoding)])
        try:
            decode(mutate(encode_pixels(self.pixels, encoding), rng), np.empty_like(self.pixels))
        except BadSample:
            return False
        return True

    def _shard(self, rng: random.Random) -> bool:
        return self._folder("train-000000.tar", mutate(self.whole["train-000000.tar"], rng))

    def _index(self, rng: random.Random) -> bool:
        return self._folder(FILE, mutate(self.whole[FILE], rng))

    def _table(self, rng: random.Random) -> bool:
        data = mutate(self.whole["train-samples.npy"], rng)
        header = json.loads(self.whole[FILE])
        header["splits"]["train"]["samples"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        (self.packed / FILE).write_text(json.dumps(header))
        return self._folder("train-samples.npy", data)

    def _folder(self, name: str, data: bytes) -> bool:
        try:
            (self.packed / name).write_bytes(data)
            try:
                return not list(problems(self.packed))
            except InputError:
                return False
        finally:
            for file in {name, FILE}:
                (self.packed / file).write_bytes(self.whole[file])


def fuzz(kind: str, cases: int, seed: int, fuzzer: Fuzzer) -> dict[str, float]:
    """Run ``cases`` of one kind: how many were told and valid, and the slowest in seconds."""
    told = valid = 0
    slowest = 0.0
    for number in range(cases):
        start = time.perf_counter()
        try:
            good = fuzzer.kinds[kind](random.Random(f"{kind} {seed} {number}"))
        except Exception as error:
            raise AssertionError(
                f"{kind}, seed {seed}, case {number}: {type(error).__name__}: {error}"
            ) from error
        slowest = max(slowest, time.perf_counter() - start)
        told, valid = told + (not good), valid + good
    return {"told": told, "valid": valid, "slowest": round(slowest, 4)}


def _saved(image: Image.Image, form: str) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form)
    return stream.getvalue()


def _tar(files: list[tuple[str, bytes]]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return stream.getvalue()


def main() -> None:
    """Run the cases and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--cases", type=int, default=10_000, help="in all, over every kind")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        fuzzer = Fuzzer(Path(name))
        share = -(-arguments.cases // len(fuzzer.kinds))
        found = {kind: fuzz(kind, share, arguments.seed, fuzzer) for kind in fuzzer.kinds}
    told = {
        "cases": share * len(found),
        "seed": arguments.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "peak_MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "kinds": found,
    }
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
