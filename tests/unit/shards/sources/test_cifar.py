"""CIFAR-10 and CIFAR-100 in their official forms, and small: binary archives and what they unpack to."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.pack import main
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.sources import Source, detect
from shards.sources.cifar import CLASSES, COARSE, FINE, Cifar10Archive
from shards.table import Index
from tests.support.tiny_set import Command, contents, keys_of, resized_in_floats

FOLDER = "cifar-10-batches-bin"
META = "\n".join([*CLASSES, "", ""]).encode()
# The order of the official archive.
BATCHES = ["data_batch_1", "data_batch_3", "data_batch_4", "test_batch", "data_batch_5", "data_batch_2"]
RECORDS = 6


def record(batch: str, number: int) -> tuple[int, np.ndarray]:
    """Label and pixels [32, 32, 3] of one record."""
    rng = np.random.default_rng([*batch.encode(), number])
    pixels = np.asarray(
        Image.fromarray(rng.integers(0, 256, (4, 4, 3), np.uint8)).resize((32, 32), Image.Resampling.BILINEAR)
    )
    return int(rng.integers(10)), pixels


def batch_of(name: str) -> bytes:
    records = (record(name, number) for number in range(RECORDS))
    return b"".join(bytes([label]) + pixels.transpose(2, 0, 1).tobytes() for label, pixels in records)


def official() -> list[tuple[str, bytes]]:
    return [
        ("batches.meta.txt", META),
        *((f"{name}.bin", batch_of(name)) for name in BATCHES[:4]),
        ("readme.html", b"<html>"),
        *((f"{name}.bin", batch_of(name)) for name in BATCHES[4:]),
    ]


def archive_of(path: Path, files: list[tuple[str, bytes]], folder: str = FOLDER) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        top = tarfile.TarInfo(folder)
        top.type = tarfile.DIRTYPE
        archive.addfile(top)
        for name, data in files:
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def cifar(tmp_path: Path) -> Path:
    return archive_of(tmp_path / "cifar-10-binary.tar.gz", official())


def test_pixels_and_labels(cifar: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(cifar, out, Settings(size=32, val=0))
    index = Index.load(out)
    assert index.schema[0].names == CLASSES and index.header.source.kind == "cifar10"
    assert keys_of(out, "train")[:2] == ["data_batch_1_00000", "data_batch_1_00001"]
    assert not [key for key in keys_of(out, "train") if key.startswith("test")]
    with ShardReader(out, order="sequential") as reader:
        batch = reader.read(range(5 * RECORDS))
    for key, image, labels in zip(batch.keys, batch.images, batch.labels, strict=True):
        label, pixels = record(key[:-6], int(key[-5:]))
        assert labels.tolist() == [label]
        assert np.array_equal(image, pixels)
    assert list(problems(out)) == []


def test_upscaled_by_the_same_filter(cifar: Path, tmp_path: Path) -> None:
    pack(cifar, tmp_path / "out", Settings(size=64, val=0))
    with ShardReader(tmp_path / "out", order="sequential") as reader:
        image = reader.read([0]).images[0]
    assert np.abs(image - resized_in_floats(record("data_batch_1", 0)[1], 64)).max() <= 0.51


def test_same_bytes_whatever_jobs(cifar: Path, tmp_path: Path, command: Command) -> None:
    for out, jobs in (("one", 1), ("two", 2)):
        code, told, _ = command(main, cifar, "--out", tmp_path / out, "--jobs", jobs, "--shard-size", 7)
        assert code == 0
    assert "cifar10, one label, class, of 10 variants (airplane, automobile, " in told
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_pickled_archive_is_refused(tmp_path: Path, command: Command) -> None:
    for files in ([("data_batch_1", pickle.dumps({}))], [("readme.html", b""), ("test_batch", b"")]):
        archive = archive_of(tmp_path / "cifar-10-python.tar.gz", files, "cifar-10-batches-py")
        code, out, err = command(main, archive, "--out", tmp_path / "out")
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "cifar-10-binary.tar.gz" in err


def change(files: list[tuple[str, bytes]], name: str, data: bytes | None) -> list[tuple[str, bytes]]:
    return [(n, data if n == name else d) for n, d in files if data is not None or n != name]  # type: ignore


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("data_batch_4.bin", None, r"data_batch_4\.bin is missing"),
        ("data_batch_4.bin", b"", r"data_batch_4\.bin: 0 bytes; allowed"),
        ("data_batch_4.bin", bytes(3072), r"data_batch_4\.bin: 3072 bytes; allowed"),
        ("data_batch_4.bin", bytes(10_001 * 3073), "allowed: 1 to 10000 records"),
        ("data_batch_4.bin", bytes([10]) + bytes(3072), "record 0: class 10; allowed: 0 to 9"),
        ("batches.meta.txt", b"cat\ndog\n", "other classes than CIFAR-10's"),
        ("batches.meta.txt", b"\xff" * 10_000, "other classes than CIFAR-10's"),
    ],
)
def test_bad_archives(tmp_path: Path, name: str, data: bytes | None, told: str) -> None:
    archive = archive_of(tmp_path / "x.tar.gz", change(official(), name, data))
    assert isinstance(detect(archive), Cifar10Archive)
    with pytest.raises(InputError, match=told):
        list(Cifar10Archive(archive).samples())


def test_cut_archive(cifar: Path) -> None:
    cifar.write_bytes(cifar.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"truncated or damaged archive|ends inside"):
        list(Cifar10Archive(cifar).samples())


def test_batch_twice(tmp_path: Path) -> None:
    archive = archive_of(tmp_path / "x.tar.gz", [*official(), ("data_batch_1.bin", batch_of("data_batch_1"))])
    with pytest.raises(InputError, match=r"data_batch_1\.bin: appears twice"):
        list(Cifar10Archive(archive).samples())


def test_the_official_test_batch_is_the_split_test(cifar: Path, tmp_path: Path, command: Command) -> None:
    code, out, _ = command(main, cifar, "--out", tmp_path / "out", "--val", 0.2, "--jobs", 1)
    index = Index.load(tmp_path / "out")
    assert code == 0 and "1 other file passed over (readme.html)" in out
    assert index.header.split_by == "source" and list(problems(tmp_path / "out")) == []
    assert keys_of(tmp_path / "out", "test") == [f"test_batch_{n:05d}" for n in range(RECORDS)]
    assert len(index.split("train")) + len(index.split("val")) == 5 * RECORDS and len(index.split("val"))


def unpacked(folder: Path, files: list[tuple[str, bytes]]) -> Path:
    folder.mkdir(parents=True)
    for name, data in files:
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("inner", ["", FOLDER])
def test_the_unpacked_archive_is_the_same(cifar: Path, tmp_path: Path, inner: str) -> None:
    unpacked(tmp_path / "set" / inner / ".", official())
    folder = detect(tmp_path / "set")
    assert (folder.kind, folder.total) == ("cifar10", 6 * RECORDS)
    assert folder.notes == ("1 other file passed over (readme.html)",)

    def told(source: Source) -> list[tuple[object, ...]]:
        return sorted((s.key, s.image, s.planes, s.labels["class"], s.split or "") for s in source.samples())

    assert told(folder) == told(detect(cifar)) and folder.fraction() == 1
    before = folder.digest()
    (tmp_path / "set" / inner / "data_batch_2.bin").write_bytes(batch_of("other"))
    assert detect(tmp_path / "set").digest() != before
    (tmp_path / "set" / inner / "data_batch_2.bin").unlink()
    with pytest.raises(InputError, match=r"data_batch_2\.bin is missing"):
        detect(tmp_path / "set")


def hundred() -> list[tuple[str, bytes]]:
    """CIFAR-100's files with a few records: superclass, class, pixels."""

    def records(count: int, first: int) -> bytes:
        return b"".join(
            bytes([n % 20, (first + n) % 100]) + record("x", n)[1].tobytes() for n in range(count)
        )

    names = [("fine_label_names.txt", FINE), ("coarse_label_names.txt", COARSE)]
    return [
        ("train.bin", records(30, 75)),
        *((name, "\n".join(words).encode() + b"\n") for name, words in names),
        ("test.bin", records(4, 0)),
    ]


@pytest.mark.parametrize("form", ["tar.gz", "folder"])
def test_hundred_classes_and_their_superclasses(tmp_path: Path, form: str) -> None:
    path = tmp_path / ("x.bin" if form == "tar.gz" else "set")
    if form == "tar.gz":
        archive_of(path, hundred(), "any folder")
    else:
        unpacked(path, hundred())
    pack(path, tmp_path / "out", Settings(size=32, val=0))
    index = Index.load(tmp_path / "out")
    assert index.header.source.kind == "cifar100" and list(problems(tmp_path / "out")) == []
    assert [(a.name, a.names) for a in index.schema] == [("superclass", COARSE), ("class", FINE)]
    assert keys_of(tmp_path / "out", "test") == [f"test_{n:05d}" for n in range(4)]
    with ShardReader(tmp_path / "out", order="sequential") as reader:
        batch = reader.read(range(30))
    assert batch.labels.tolist() == [[n % 20, (75 + n) % 100] for n in range(30)]
    for number, image in enumerate(batch.images):
        assert np.array_equal(image, record("x", number)[1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_official_names() -> None:
    assert len(set(FINE)) == 100 and len(set(COARSE)) == 20
    assert sorted(FINE) == list(FINE) and sorted(COARSE) == list(COARSE)  # as the official files have them


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("train.bin", None, r"train\.bin is missing"),
        ("train.bin", bytes(3073), r"train\.bin: 3073 bytes; allowed: 1 to 50000 records"),
        ("train.bin", bytes([20, 0]) + bytes(3072), "record 0: superclass 20; allowed: 0 to 19"),
        ("test.bin", bytes([0, 100]) + bytes(3072), "record 0: class 100; allowed: 0 to 99"),
        ("fine_label_names.txt", b"apple\nfox\n", "other classes than CIFAR-100's apple"),
    ],
)
def test_bad_hundred(tmp_path: Path, name: str, data: bytes | None, told: str) -> None:
    files = change(hundred(), name, data)
    for path in (archive_of(tmp_path / "x", files, "cifar-100-binary"), unpacked(tmp_path / "set", files)):
        with pytest.raises(InputError, match=told):
            list(detect(path).samples())


def test_pickled_hundred_and_folders_are_refused(tmp_path: Path) -> None:
    files = [(name, pickle.dumps({})) for name in ("meta", "train", "test")]
    archive = archive_of(tmp_path / "x.tar.gz", files, "cifar-100-python")
    for path in (archive, unpacked(tmp_path / "any", files), unpacked(tmp_path / "cifar-10-batches-py", [])):
        with pytest.raises(InputError, match=r"the pickled CIFAR-10.*take cifar-10.*-binary\.tar\.gz from"):
            detect(path)
