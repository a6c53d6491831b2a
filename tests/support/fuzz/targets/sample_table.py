"""A sample table, as shards.verify sees it: a line with the number of the schema's variants, and the table.

index.json has that number, and the size and hash of what follows.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import numpy as np

from shards.header import FILE
from shards.schema import Attribute
from shards.tables.rows import sample_dtype
from tests.support.fuzz.examples import packed
from tests.support.fuzz.reading import verified
from tests.support.fuzz.target import Target

NAME = "train-samples.npy"
WORDS = [
    b"'|O'",
    b"'O'",
    b"(9999999999999,)",
    b"(-1,)",
    b"(16L,)",
    b"True",
    b"'<i8'",
    b"(2, 8)",
    b"(" * 3000,
    b"S80",
    b"S0",
]


def target() -> Target:
    def feed(data: bytes, folder: Path) -> None:
        variants, _, data = data.partition(b"\n")
        header = json.loads(packed()[FILE])
        header["variant_names"] = {}
        header["schema"][0]["variants"] = (
            int(variants) if variants[:30].isdigit() and len(variants) < 30 else None
        )
        header["splits"]["train"]["samples"].update(bytes=len(data), sha256=hashlib.sha256(data).hexdigest())
        verified(folder, {NAME: data, FILE: json.dumps(header).encode()})

    whole = packed()[NAME]
    many = 2**64 + 5
    dtype = sample_dtype(6, [Attribute("class", many)])
    objects = io.BytesIO()
    head = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (16,)}
    np.lib.format.write_array_header_1_0(objects, head)
    objects.write(bytes(16 * dtype.itemsize))
    return Target([b"2\n" + whole, b"2\n" + whole, b"%d\n" % many + objects.getvalue()], feed, WORDS)
