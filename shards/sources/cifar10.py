"""CIFAR-10's official binary archive, cifar-10-binary.tar.gz, streamed in its own order.

Facts: https://www.cs.toronto.edu/~kriz/cifar.html. Five files ``data_batch_1.bin`` to ``data_batch_5.bin`` of
10,000 records, ``test_batch.bin``, and ``batches.meta.txt`` with the names of the classes. A record is one
byte of label, 0 to 9, then 1,024 bytes of red, of green and of blue: 32 x 32 pixels, row by row.

The official test batch is left out: whatever is measured on it later was never trained on. Train and val are
both cut from the five training batches, by the hash of the key as everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from diffbase.cli import InputError
from shards.schema import Attribute
from shards.sources.archive import SUFFIXES, Archive, first_file
from shards.sources.base import AS_IT_IS, Asked, Sample
from shards.sources.tar_members import Stream

EDGE = 32  # pixels
RECORD = 1 + 3 * EDGE * EDGE  # bytes
BATCH = 10_000  # records of one official file; fewer are taken, more are not
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
META, META_CAP = "batches.meta.txt", 4096
_DATA = re.compile(r"(data_batch_[1-5])\.bin")
_BINARY = re.compile(r".*\.(bin|txt|html)")
_OURS = re.compile(r"(data_batch_[1-5]|test_batch|batches\.meta)(\.bin|\.txt)?")
FOLDER, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"  # the folders in the two archives


class CifarArchive(Archive):
    """The binary archive; InputError for the pickled one, which would run code when it is read."""

    kind = "cifar10"
    looks_like = "cifar-10-binary.tar.gz"
    schema: tuple[Attribute, ...] = (Attribute("class", len(CLASSES), CLASSES),)
    crop: int | None = None

    def __init__(self, path: Path, asked: Asked = AS_IT_IS) -> None:
        super().__init__(path, asked)
        first = first_file(path)
        if first is not None and (first.parent.name == PICKLED or not _BINARY.fullmatch(first.name)):
            raise InputError(
                f"{path}: the pickled CIFAR-10, which is not read (a pickle can run code); "
                "take cifar-10-binary.tar.gz from https://www.cs.toronto.edu/~kriz/cifar.html"
            )

    @staticmethod
    def claims(path: Path) -> bool:
        """An archive whose first file has a name or the folder of CIFAR-10's, binary or pickled."""
        if not (path.is_file() and path.name.endswith(SUFFIXES)):
            return False
        first = first_file(path)
        return first is not None and (
            first.parent.name in (FOLDER, PICKLED) or _OURS.fullmatch(first.name) is not None
        )

    def _samples(self, stream: Stream) -> Iterator[Sample]:
        seen: set[str] = set()
        for path, where, size in self._members(stream, _wanted):
            if path.name in seen:
                raise InputError(f"{where}: appears twice")
            seen.add(path.name)
            if path.name == META:
                names = stream.read(min(size, META_CAP)).decode("ascii", "replace").split()
                if tuple(names) != CLASSES:
                    raise InputError(f"{where}: other classes than CIFAR-10's {', '.join(CLASSES)}")
                continue
            if size % RECORD or not 0 < size <= BATCH * RECORD:
                raise InputError(
                    f"{where}: {size} bytes; allowed: 1 to {BATCH} records of {RECORD} bytes (a label and "
                    f"{EDGE} x {EDGE} RGB)"
                )
            for number in range(size // RECORD):
                record = stream.read(RECORD)
                if len(record) != RECORD:
                    raise InputError(f"{where}: the archive ends inside it")
                if record[0] >= len(CLASSES):
                    raise InputError(
                        f"{where}: record {number}: label {record[0]}; allowed: 0 to {len(CLASSES) - 1}"
                    )
                key = f"{path.stem}_{number:05d}"
                yield Sample(
                    key, f"{where}: record {number}", record[1:], RECORD - 1, {"class": record[0]}, EDGE
                )
        missing = [name for name in (f"data_batch_{n}.bin" for n in range(1, 6)) if name not in seen]
        if missing:
            raise InputError(f"{self.path}: {missing[0]} is missing")


def _wanted(path: PurePosixPath) -> bool:
    return path.name == META or _DATA.fullmatch(path.name) is not None
