"""The index: what it tells, and that nothing wrong in it gets past loading."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards import table as index
from shards.header import FILE
from shards.schema import CARTOON_SET, Attribute
from shards.table import Index
from shards.tables import rows
from shards.tables.rows import sample_dtype
from tests.support.tiny_set import labels_of


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    header = json.loads((folder / FILE).read_text())
    change(header)
    (folder / FILE).write_text(json.dumps(header))


def replace_table(folder: Path, data: bytes) -> None:
    """Another sample table, with the size and hash in index.json that it needs to be looked at."""
    (folder / "train-samples.npy").write_bytes(data)
    entry = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    edit(folder, lambda header: header["splits"]["train"]["samples"].update(entry))


def npy(array: np.ndarray, **given: Any) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **given)
    return stream.getvalue()


def test_load(packed: Path) -> None:
    index = Index.load(packed)
    assert index.schema == CARTOON_SET
    assert index.size == 4
    assert index.fingerprint == hashlib.sha256((packed / FILE).read_bytes()).hexdigest()
    assert [len(index.split(name)) for name in ("train", "val")] == [
        header["count"] for header in json.loads((packed / FILE).read_text())["splits"].values()
    ]
    assert sum(len(split) for split in index.splits.values()) == 40
    with pytest.raises(InputError, match="no split 'test'; allowed: train, val"):
        index.split("test")


def test_offsets_lead_to_the_members(packed: Path) -> None:
    for split in Index.load(packed).splits.values():
        numbers = np.arange(len(split))
        for number, shard in zip(numbers.tolist(), split.shard_of(numbers).tolist(), strict=True):
            row = split.samples[number]
            data = (packed / split.shards[shard].name).read_bytes()
            image = data[row["image_offset"] :][: row["image_bytes"]]
            label = data[row["label_offset"] :][: row["label_bytes"]]
            assert image.startswith(b"\x89PNG") and image.endswith(b"IEND\xaeB`\x82")
            assert set(json.loads(label)) == {a.name for a in CARTOON_SET}


def test_no_machine_in_the_index(packed: Path) -> None:
    assert str(packed.parent) not in (packed / FILE).read_text()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"index\.json: not found; pack a data set with: python -m shards\.pack"
    ):
        Index.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda h: h.update(version=1), "version 1; this code reads 2, 3 and 4: pack it anew"),
        (lambda h: h.update(format="mds"), "not an index of shards.pack"),
        (lambda h: h.pop("val"), "val: Field required"),
        (lambda h: h.update(extra=1), "extra: Extra inputs"),
        (lambda h: h["splits"]["train"].update(count=7), "count is 7, its shards hold another number"),
        (lambda h: h["splits"]["train"].update(count="7"), "valid integer"),
        (lambda h: h["splits"]["train"]["shards"][0].update(name="../x.tar"), "not a plain file name"),
        (lambda h: h["splits"]["train"]["shards"][0].update(name="/etc/passwd"), "not a plain file name"),
        (lambda h: h["splits"]["train"]["shards"][0].update(name="pipe:ls"), "not a plain file name"),
        (lambda h: h["splits"]["train"]["samples"].update(name=".."), "not a plain file name"),
        (lambda h: h["splits"]["train"]["shards"][0].update(name="train-000001.tar"), "named twice"),
        (lambda h: h["splits"]["train"]["shards"][0].update(bytes=10), "lie outside its shard"),
        (lambda h: h["splits"]["train"]["shards"][0].update(bytes=-1), "greater than or equal to 0"),
        (lambda h: h["splits"]["train"]["shards"][0].update(sha256="abc"), "sha256"),
        (lambda h: h["splits"]["train"]["samples"].update(sha256="0" * 64), "damaged"),
        (lambda h: h["schema"].append({"name": "hair", "variants": 3}), "must be unique"),
        (lambda h: h["schema"][0].update(variants=0), "no variants"),
        (lambda h: h["preprocessing"].update(size=10**9), "size"),
        (lambda h: h["preprocessing"].update(crop=10**9), "preprocessing.crop: "),
        (lambda h: h["preprocessing"].update(background="x" * 5000), "preprocessing.background: "),
        (lambda h: h["schema"][0].update(variants=2**64 + 5), "schema.0: .*more than 65536 variants"),
        (lambda h: h["schema"][0].update(variants=10**400), "schema.0: .*more than 65536 variants"),
        (
            lambda h: [a.update(variants=65536) for a in h["schema"]],
            "schema: more than 65536 variants in all",
        ),
        (lambda h: h["schema"][0].update(name="x" * 256), "schema.0: .*1 to 255 characters"),
        (lambda h: h["schema"][0].update(name="\x1b[2J"), "schema.0: .*cannot be printed"),
        (lambda h: h.update(schema=[{"name": f"a{n}", "variants": 2} for n in range(257)]), "schema: "),
        (
            lambda h: h.update(variant_names={"hair": ["\n"] * 111}),
            "variant_names.hair.0: .*cannot be printed",
        ),
        (lambda h: h.update(shard_size=10**9), "shard_size: "),
        (lambda h: h["source"].update(name="x" * 5000), "source.name: "),
        (lambda h: h["splits"].update({"a\nb": h["splits"]["val"]}), "splits"),
        (lambda h: h["splits"].update({f"s{n}": h["splits"]["val"] for n in range(17)}), "splits: "),
        (lambda h: h["splits"]["train"]["shards"][0].update(name="a" * 256), "shards.0.name: "),
        (lambda h: h["splits"]["train"]["shards"][0].update(name="a\x1b.tar"), "cannot be printed"),
        (lambda h: h["splits"]["train"]["shards"][0].update(count=10**7), "shards.0.count: "),
        (lambda h: h["splits"]["train"]["samples"].update(bytes=1 << 40), "samples.bytes: "),
    ],
)
def test_bad_header(copy: Path, change: Callable[[dict[str, Any]], object], told: str) -> None:
    edit(copy, change)
    with pytest.raises(InputError, match=told):
        Index.load(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff", "[" * 100_000])
def test_not_json(copy: Path, text: str) -> None:
    (copy / FILE).write_text(text, encoding="latin-1")
    with pytest.raises(InputError, match=r"index\.json: not"):
        Index.load(copy)


def test_caps(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "MEMBER_CAP", 100)
    with pytest.raises(InputError, match="lie outside"):
        Index.load(copy)
    monkeypatch.setattr(index, "INDEX_CAP", 100)
    with pytest.raises(InputError, match=r"index\.json: larger than 100 bytes"):
        Index.load(copy)


def test_bad_table(copy: Path) -> None:
    table = Index.load(copy).split("train").samples
    huge = npy(table).replace(f"({len(table)},)".encode(), b"(9999999999,)")
    odd_key, empty_key, outside, long_labels = table.copy(), table.copy(), table.copy(), table.copy()
    with_zero = npy(table).replace(b"cs1", b"c\x001", 1)
    long_labels["label_bytes"][0] = (1 << 20) + 1
    odd_key["key"][1], empty_key["key"][2], outside["image_offset"][3] = b"a/b", b"", -1
    for data, told in (
        (npy(table[:-1]), "holds another number of samples"),
        (npy(table) + b"\0", "holds another number of samples"),
        (huge, "not a sample table|another number"),
        (npy(np.zeros(len(table))), "its columns differ"),
        (npy(np.array([{}] * len(table), object), allow_pickle=True), "its columns differ"),
        (b"PK\x03\x04junk", "not a sample table"),
        (b"", "not a sample table"),
        (npy(odd_key), "other characters"),
        (npy(empty_key), "an empty key"),
        (with_zero, "an empty key or one with other characters"),
        (npy(long_labels), "the label's bytes lie outside"),
        (npy(outside), "row 3: the image's bytes lie outside"),
    ):
        replace_table(copy, data)
        with pytest.raises(InputError, match=told):
            Index.load(copy)
    (copy / "train-samples.npy").write_bytes(b"short")
    with pytest.raises(InputError, match=r"5 bytes; index\.json says"):
        Index.load(copy)
    (copy / "train-samples.npy").unlink()
    with pytest.raises(InputError, match="missing"):
        Index.load(copy)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_index_is_told_or_valid(packed: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([FILE, "train-samples.npy"]))
    whole = (packed / name).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    mutated = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + data.draw(st.integers(0, 6)) :]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for file in packed.glob("*.*"):
            if file.suffix != ".tar":
                shutil.copy(file, folder)
        if name == FILE:
            (folder / FILE).write_bytes(mutated)
        else:
            replace_table(folder, mutated)
        try:
            index = Index.load(folder)
        except InputError:
            return
        assert all(split.starts[-1] == len(split) for split in index.splits.values())


def test_nothing_is_read_of_a_table_that_does_not_fit(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A header that asks for terabytes, and a file that has them (of nothing): told before they are read."""
    table = copy / "train-samples.npy"
    index = Index.load(copy)
    data = table.read_bytes()
    for size in (len(data) + 1, 10 << 30):
        os.truncate(table, size)
        edit(copy, lambda header, size=size: header["splits"]["train"]["samples"].update(bytes=size))
        with pytest.raises(InputError, match="holds another number of samples"):
            Index.load(copy)
    rows = (10 << 30) // index.split("train").samples.itemsize
    head = io.BytesIO()
    dtype = np.lib.format.dtype_to_descr(index.split("train").samples.dtype)
    np.lib.format.write_array_header_1_0(head, {"descr": dtype, "fortran_order": False, "shape": (rows,)})
    table.write_bytes(head.getvalue())
    size = head.tell() + rows * index.split("train").samples.itemsize
    os.truncate(table, size)
    edit(copy, lambda header: header["splits"]["train"]["samples"].update(bytes=size))
    with pytest.raises(InputError, match="holds another number of samples than the"):
        Index.load(copy)


def test_a_table_larger_than_memory(copy: Path) -> None:
    """Whose index agrees with it: a hole of 8 GiB in a process that may have 2."""
    index = Index.load(copy)
    dtype, rows = index.split("train").samples.dtype, 1_000_000 * 160
    head = io.BytesIO()
    shape = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows,)}
    np.lib.format.write_array_header_1_0(head, shape)
    (copy / "train-samples.npy").write_bytes(head.getvalue())
    size = head.tell() + rows * dtype.itemsize
    os.truncate(copy / "train-samples.npy", size)

    def change(header: dict[str, Any]) -> None:
        train = header["splits"]["train"]
        train["samples"]["bytes"] = size
        shards = [{**train["shards"][0], "name": f"s{n}.tar", "count": 1_000_000} for n in range(160)]
        train.update(count=rows, shards=shards)

    edit(copy, change)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from diffbase.cli import run; from shards.table import Index\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "run(lambda: Index.load(Path(sys.argv[1])))"
    )
    done = subprocess.run([sys.executable, "-c", code, copy], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and f"its {size} bytes do not fit into memory" in done.stderr


def test_row_is_compact() -> None:
    assert sample_dtype(8, CARTOON_SET).itemsize == 54  # a million samples: 54 MB
    assert sample_dtype(8, ()).itemsize == 36
    assert sample_dtype(8, [Attribute("class", 1000)]).itemsize == 38


def test_labels_are_those_of_the_members(packed: Path) -> None:
    for split in Index.load(packed).splits.values():
        for number in range(len(split)):
            assert split.samples["labels"][number].tolist() == list(labels_of(split.key(number)).values())


def test_labels_fit_the_schema(copy: Path) -> None:
    table = Index.load(copy).split("train").samples.copy()
    table["labels"][3, 2] = 2
    replace_table(copy, npy(table))
    with pytest.raises(InputError, match=r"a sample's eye_lid is 2; allowed: 0 to 1"):
        Index.load(copy)


def test_loads_without_torch() -> None:
    code = "import shards.read, shards.table, shards.verify, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
