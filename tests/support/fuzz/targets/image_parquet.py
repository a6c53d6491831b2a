"""Parquet with a column of images, as Hugging Face's datasets write it, and with bytes alone."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow
from pyarrow import parquet

from shards.sources.parquet_images import ParquetImages
from tests.support.fuzz.examples import picture, saved
from tests.support.fuzz.reading import archive
from tests.support.fuzz.target import Target

FEATURES = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
WORDS = [b"PAR1", b"\x15\x02", b"\x19\x1c", b"bytes", b"path", b"ClassLabel", b"names", b"\x18\x05image"]


def target() -> Target:
    image = saved(picture(), "PNG")

    def file(columns: dict[str, Any], **options: Any) -> bytes:
        stream = io.BytesIO()
        table = pyarrow.table(columns)
        hint = json.dumps({"info": {"features": FEATURES}})
        parquet.write_table(table.replace_schema_metadata({"huggingface": hint}), stream, **options)
        return stream.getvalue()

    structs = [{"bytes": image, "path": f"{n}.png"} for n in range(4)]
    labels = {"label": [0, 1, None, 1], "word": ["a", "b", "a", None], "age": [1.5, 2.0, 3.0, 9.0]}
    seeds = [
        file({"image": structs, **labels}),
        file({"image": structs, **labels}, row_group_size=2, compression="none", use_dictionary=False),
        file({"image": [image] * 4, **labels, "split": ["train", "test"] * 2}, data_page_version="2.0"),
    ]
    return Target(seeds, archive(ParquetImages, "x.parquet"), WORDS)
