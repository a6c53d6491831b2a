"""A table of labels that someone else wrote: CSV, JSON lines, CelebA's list, parquet."""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath

import pyarrow as pa
from pyarrow import parquet

from shards.schema import UNKNOWN, one_hot_width
from shards.sources.base import Asked
from shards.sources.layout import Layout, Tree
from tests.support.fuzz.target import Target

IMAGES = ["a.png", "b/1.png", "b/2.png", "c d.jpg"]
CSV = "file_name,hair color,split,größe,ok\n" + "".join(
    f"{name},{['red', '', 'blond'][n % 3]},train,{n * 0.75},{['true', 'false'][n % 2]}\n"
    for n, name in enumerate(IMAGES)
)
JSONL = "".join(
    f'{{"file_name": "{name}", "x": {n}, "y": null, "z": "ü"}}\n' for n, name in enumerate(IMAGES)
)
CELEBA = "4\nBald Young\n" + "".join(f"{name.replace('c d', 'c-d')} -1  1\n" for name in IMAGES)
WORDS = [
    *(b"NaN", b"null", b'"', b";", b"\t", b"\r\n", b"\xef\xbb\xbf", b"\xff\xfe", b"../", b"1e999", b"test"),
    *(b"9" * 400, b"{}", b"[" * 2000, b"\\ud800", b" " * 300, b"PAR1"),
]


def _parquet() -> bytes:
    stream = io.BytesIO()
    columns = {
        "file_name": IMAGES,
        "text": ["a", None, "b", "a"],
        "number": [0.5, 1.5, None, 7],
        "flag": [True, False, None, True],
        "list": [[1], [], None, [2, 3]],
    }
    parquet.write_table(pa.table(columns), stream, row_group_size=3)
    return stream.getvalue()


def target() -> Target:
    def feed(data: bytes, folder: Path) -> object:
        (folder / "table").write_bytes(data)
        names = [name.replace("c d", "c-d") for name in IMAGES] if data[:1].isdigit() else IMAGES
        files = {PurePosixPath(name): 9 for name in names}
        tree = Tree(str, files, [], lambda path: io.BytesIO())
        layout = Layout(tree, Asked(labels=folder / "table", bins=2))
        assert len({image.key for image in layout.images}) == len(IMAGES)
        assert one_hot_width(layout.schema) == sum(len(attribute.names) for attribute in layout.schema)
        for attribute in layout.schema:
            assert all(name.isprintable() and len(name) <= 255 for name in (attribute.name, *attribute.names))
            assert len(set(attribute.names)) == attribute.variants
        for image in layout.images:
            for attribute in layout.schema:
                assert UNKNOWN <= image.labels[attribute.name] < attribute.variants
        layout.digest()
        return layout

    return Target([CSV.encode(), JSONL.encode(), CELEBA.encode(), _parquet()], feed, WORDS)
