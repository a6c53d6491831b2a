"""Tars as other programs write them, of tiny images."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from shards.foreign.indexer import Summary, index
from shards.packing.plan import Settings
from shards.sources.base import AS_IT_IS, Asked

FORMATS = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)
FORMS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}
Member = tuple[str, bytes]
TINY = Settings(size=5, val=0.0)


def image(number: int, ending: str = "jpg") -> bytes:
    """A smooth image that depends on the number alone, of 9 to 20 by 8 to 15 pixels."""
    rng = np.random.default_rng(number)
    small = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    stream = io.BytesIO()
    small.resize((9 + number % 12, 8 + number % 8)).save(stream, FORMS[ending])
    return stream.getvalue()


def sample(key: str, number: int, ending: str = "jpg", **fields: object) -> list[Member]:
    """A caption, a class of three, the fields as JSON, and an image."""
    return [
        (f"{key}.txt", f"caption number {number}".encode()),
        (f"{key}.cls", b"c%d\n" % (number % 3)),
        (f"{key}.json", json.dumps(fields).encode()),
        (f"{key}.{ending}", image(number, ending)),
    ]


def write(path: Path, members: Iterable[Member], form: int = tarfile.PAX_FORMAT, mode: str = "w") -> Path:
    """A tar of the members."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode, format=form) as archive:  # type: ignore[call-overload]
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def write_numbers(path: Path, numbers: Iterable[int], **options: Any) -> Path:
    """A tar of samples k0, k1, ... by their numbers, with a field ``age`` of two values."""
    return write(path, [m for n in numbers for m in sample(f"k{n}", n, age=10 * (n % 2))], **options)


def like_img2dataset(folder: Path, shard: int, numbers: Iterable[int], fields: Mapping[str, object]) -> None:
    """A shard as img2dataset writes it: tar, statistics and a table; its JSON has many fields."""
    members: list[Member] = []
    for n in numbers:
        key = f"{shard:05d}{n:04d}"
        meta = {
            "caption": f"a picture of {n}",
            "url": f"http://example.org/{n}.jpg",
            "key": key,
            "status": "success",
            "error_message": None,
            "width": 256,
            "height": 256,
            "exif": "{}",
            **fields,
            "level": n % 4,
        }
        data = json.dumps(meta, indent=4).encode()
        members += [
            (f"{key}.jpg", image(n)),
            (f"{key}.txt", str(meta["caption"]).encode()),
            (f"{key}.json", data),
        ]
    write(folder / f"{shard:05d}.tar", members, tarfile.GNU_FORMAT)
    (folder / f"{shard:05d}_stats.json").write_text('{"count": 1}')
    (folder / f"{shard:05d}.parquet").write_bytes(b"PAR1")


def indexed(
    out: Path, *tars: Path | str, asked: Asked = AS_IT_IS, given: Settings = TINY, **options: Any
) -> Summary:
    """An index of the tars in the folder ``out``, of images of 5 pixels."""
    return index([str(tar) for tar in tars], out, given, asked, **options)
