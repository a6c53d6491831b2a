"""Whole examples of what shards reads: pictures, archives, and a packed folder."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from shards.codec import png
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.schema import CARTOON_SET
from shards.sources.cartoon_csv import format_csv
from shards.sources.cifar10 import CLASSES


def picture() -> Image.Image:
    """24 x 20 pixels, smooth, with alpha."""
    noise = np.random.default_rng(0).integers(0, 256, (5, 5, 4), np.uint8)
    return Image.fromarray(noise).resize((24, 20))


def saved(image: Image.Image, form: str) -> bytes:
    """The picture as a file."""
    image.save(stream := io.BytesIO(), form)
    return stream.getvalue()


def pixels() -> np.ndarray:
    """The picture's, RGB."""
    return np.asarray(picture().convert("RGB"))


def csv() -> bytes:
    """Labels of a Cartoon Set picture."""
    return format_csv({a.name: a.variants - 1 for a in CARTOON_SET}).encode()


def tar(files: Sequence[tuple[str, bytes]], form: int = tarfile.USTAR_FORMAT, **pax: str) -> bytes:
    """An archive; ``pax`` are headers of its first member."""
    with tarfile.open(fileobj=(stream := io.BytesIO()), mode="w", format=form) as archive:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            info.pax_headers = {key.replace("_", "."): value for key, value in pax.items()}
            archive.addfile(info, io.BytesIO(data))
            pax = {}
    return stream.getvalue()


def member(name: str, size: int, kind: bytes = tarfile.REGTYPE, content: bytes = b"") -> bytes:
    """A header with the right checksum, whatever it claims, and what follows it."""
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def hostile_tars() -> list[bytes]:
    """Archives whose headers lie, with checksums that are right."""
    image, end = png.encode(pixels()), bytes(1024)
    good = tar([("s/cs1.png", image), ("s/cs1.csv", csv())])
    pax = tarfile.PAX_FORMAT
    holes = ",".join("0,0" for _ in range(4000))
    chain = b"".join(member("././@LongLink", 8, tarfile.GNUTYPE_LONGNAME, b"s/x.png") for _ in range(2000))
    return [
        member("s/cs1.png", 2**70, content=image) + end,
        member("s/cs1.png", -(2**40), content=image) + end,
        chain + good,
        tar([("s/cs1.png", image)], pax, GNU_sparse_map=holes, GNU_sparse_size="100"),
        tar([("s/cs1.png", image)], pax, GNU_sparse_size="abc"),
        tar([("s/cs1.png", image)], pax, GNU_sparse_major="1", GNU_sparse_minor="0"),
        tar([("s/cs1.png", image)], pax, size="9" * 20),
        tar([("s/cs1.png", image)], pax, path="x/" * 4000 + "cs1.png"),
        tar([("s/cs1.png", image)], pax, comment="x" * 100).replace(b"1", b"9" * 20, 1),
        member("PaxHeader", 40, tarfile.XHDTYPE, b"99999999999999999999 path=s/cs1.png\n") + good,
        member("PaxHeader", 40, tarfile.XHDTYPE, b"12 size=abc\n" + b"0" * 28) + good,
        member("PaxHeader", 8000, tarfile.XHDTYPE, b"1" * 8000) + good,
        member("PaxHeader", 5000, tarfile.XHDTYPE, (b"9" * 4900) + b" path=x\n") + good,
        member("s/cs1.png", 100, tarfile.GNUTYPE_SPARSE, bytes(100)) + end,
        member("../cs1.png", len(image), content=image) + end,
        member("/cs1.png", len(image), content=image) + end,
        member("s/cs1.png", 0, tarfile.SYMTYPE) + end,
        member("s/cs1.png", 0, tarfile.LNKTYPE) + end,
        gzip.compress(member("s/x", 64 << 20, content=bytes(64 << 20)), mtime=0)[:5000],
        gzip.compress(bytes(64 << 20), mtime=0),
    ]


def cartoon_tars() -> list[bytes]:
    """Whole archives of two samples: plain, gzipped, with PAX headers."""
    both = [(f"s/cs{n}.{e}", d) for n in (1, 2) for e, d in (("png", png.encode(pixels())), ("csv", csv()))]
    plain = tar(both)
    return [plain, gzip.compress(plain, mtime=0), tar(both, tarfile.PAX_FORMAT, comment="a word")]


def cifar_tar() -> bytes:
    """CIFAR-10's binary archive with a record in each batch."""
    record = bytes([3]) + np.random.default_rng(0).bytes(3072)
    batches = [(f"b/data_batch_{n}.bin", record) for n in range(1, 6)]
    return tar([("b/batches.meta.txt", "\n".join(CLASSES).encode()), *batches])


@functools.cache
def packed() -> dict[str, bytes]:
    """The files of a packed folder of sixteen samples in two shards."""
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stdout(sys.stderr):
        source, out = Path(name) / "source", Path(name) / "out"
        rng = np.random.default_rng(0)
        for label in ("ant", "bee"):
            (source / label).mkdir(parents=True)
            for number in range(8):
                noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8))
                noise.save(source / label / f"{number}.png")
        pack(source, out, Settings(size=4, val=0.0, shard_size=8))
        return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def unpack(folder: Path, **changed: bytes) -> Path:
    """That folder, with other bytes in some files (their names with ``_`` for ``.`` and ``-``)."""
    for name, data in packed().items():
        (folder / name).write_bytes(changed.get(name.replace(".", "_").replace("-", "_"), data))
    return folder
