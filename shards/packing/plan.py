"""Which sample goes into which shard: the settings of a pack, the split, and the plan of each shard."""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from diffbase.cli import InputError
from shards.codec import ENCODINGS, KEEP, KEPT
from shards.schema import SHARD_SIZE_CAP, SIZE_CAP
from shards.sources import Sample, Source

HELD_CAP = 1 << 30  # bytes of an archive's images that wait for their shards to be full
SHARD_NAME = re.compile(r"(train|val|test)-([0-9]{6,9})\.tar")
SPLITS = ("train", "val", "test")
"""Of a packed folder. A hash of the key decides between the first two; a source may tell any."""
CHUNK = 32  # samples a worker gets at a time: 0.15 s of work, 1.5 MB of source images


@dataclass(frozen=True)
class Settings:
    """What the bytes of a packed folder depend on, besides the source. Lengths in pixels."""

    size: int = 64
    crop: int | None = None  # None: the source's usual one
    image: str = "png"
    shard_size: int = 1000
    val: float = 0.02

    def __post_init__(self) -> None:
        for flag, value, low, high in (
            ("--size", self.size, 1, SIZE_CAP),
            ("--crop", 1 if self.crop is None else self.crop, 1, SIZE_CAP),
            ("--shard-size", self.shard_size, 1, SHARD_SIZE_CAP),
        ):
            if not low <= value <= high:
                raise InputError(f"{flag} {value}: allowed: {low} to {high}")
        if self.image not in (*ENCODINGS, KEEP):
            raise InputError(f"--image {self.image}: unknown; allowed: {', '.join([*ENCODINGS, KEEP])}")
        if not 0 <= self.val < 1:
            raise InputError(f"--val {self.val}: allowed: 0 up to, not including, 1")

    @property
    def encoding(self) -> str:
        """What the images are in the shards, as the index tells it."""
        return KEPT if self.image == KEEP else self.image

    def crop_for(self, source: Source) -> int | None:
        """Edge of the centre crop; None for the largest centred square of each image."""
        return source.crop if self.crop is None else self.crop

    def preprocessing(self, crop: int | None, encoding: str) -> dict[str, Any]:
        """What is done to every image, as the index tells it."""
        return {
            "crop": crop,
            "size": self.size,
            "resample": "bicubic, antialiased, rounded once",
            "background": "white",
            "encoding": encoding,
        }

    def about(self, source: Source, digest: str) -> dict[str, Any]:
        """The index's fields that tell how and from what the shards were made."""
        name = os.fsencode(source.name).decode("utf-8", "replace")  # a folder's may be any bytes; JSON's not
        return {
            "preprocessing": self.preprocessing(self.crop_for(source), self.encoding),
            "source": {"kind": source.kind, "name": name, "digest": digest},
            "shard_size": self.shard_size,
            "val": self.val,
            **({"split_by": source.split_by} if source.split_by != "key" else {}),
        }


def split_of(key: str, val: float) -> str:
    """``val`` for a share ``val`` of all keys, else ``train``; depends on the key and the share only."""
    fraction = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") / 2**64
    return "val" if fraction < val else "train"


@dataclass
class Plan:
    """One shard to come: its samples, in order, and the digest by which they are known again."""

    split: str
    name: str
    samples: list[Sample]
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        lines = (
            # A file's bytes are the workers' to read; those of an archive are here already.
            f"{s.key} {s.image_bytes} {zlib.crc32(s.image) if isinstance(s.image, bytes) else '-'} "
            f"{sorted(s.labels.items())}\n"
            for s in self.samples
        )
        self.digest = hashlib.sha256("".join(lines).encode()).hexdigest()

    def without(self, keys: Iterable[str]) -> list[Sample]:
        """The samples that are not among those of ``keys``."""
        others = set(keys)
        return [sample for sample in self.samples if sample.key not in others]

    def chunks(self) -> list[list[Sample]]:
        """The samples in the portions that workers get."""
        return [self.samples[first : first + CHUNK] for first in range(0, len(self.samples), CHUNK)]


def plan_shards(samples: Iterable[Sample], settings: Settings) -> Iterator[Plan]:
    """Cut the samples of each split into shards. Holds one shard of each split in memory.

    InputError where their images take more than HELD_CAP bytes.
    """
    waiting: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    held = dict.fromkeys(waiting, 0)  # bytes; a folder's images are not read here
    numbers = dict.fromkeys(waiting, 0)

    def cut(split: str) -> Plan:
        plan = Plan(split, f"{split}-{numbers[split]:06d}.tar", waiting[split])
        waiting[split] = []
        held[split] = 0
        numbers[split] += 1
        return plan

    for sample in samples:
        split = sample.split or split_of(sample.split_key or sample.key, settings.val)
        waiting[split].append(sample)
        held[split] += len(sample.image) if isinstance(sample.image, bytes) else 0
        if sum(held.values()) > HELD_CAP:
            raise InputError(
                f"{sample.where}: more than {HELD_CAP >> 20} MiB of images wait for their shards to be full; "
                "give a smaller --shard-size, or unpack the archive and pack the folder"
            )
        if len(waiting[split]) == settings.shard_size:
            yield cut(split)
    yield from (cut(split) for split in waiting if waiting[split])
