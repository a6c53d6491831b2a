"""--image keep: JPEGs of the packed size pass unchanged; everything else is one line."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diffbase.cli import InputError
from shards.checking.repair import repair
from shards.checking.verifier import problems
from shards.codec.decode import BadSample
from shards.codec.fast_decode import decoder
from shards.header import FILE
from shards.pack import main
from shards.packing.bad import OnBad
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import CorruptSampleError, ShardReader
from shards.table import Index
from tests.support.tiny_set import Command, contents, png

KEEP = Settings(size=16, image="keep", shard_size=4, val=0.3)


def jpeg(number: int, size: tuple[int, int] = (16, 16), mode: str = "RGB", **given: object) -> bytes:
    shape = (*size[::-1], len(mode)) if len(mode) > 1 else size[::-1]
    pixels = np.random.default_rng(number).integers(0, 256, shape, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, mode).save(stream, "JPEG", **{"quality": 60 + number % 40, **given})
    return stream.getvalue()


def turned(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(number, exif=exif)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twenty JPEGs of 16 x 16 in two classes, some of one channel, some with a comment."""
    for n in range(20):
        place = tmp_path / "photos" / "ab"[n % 2] / f"{n}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        more = {"comment": b"by somebody"} if n % 3 == 0 else {"progressive": n % 2 == 0}
        place.write_bytes(jpeg(n, mode="L" if n % 5 == 0 else "RGB", **more))
    return tmp_path / "photos"


def sources(photos: Path) -> dict[str, bytes]:
    return {f"{path.parent.name}__{path.stem}": path.read_bytes() for path in photos.glob("*/*.jpg")}


def test_files_pass_unchanged(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "out", KEEP)
    header = Index.load(tmp_path / "out").header
    assert (header.version, header.preprocessing.encoding) == (4, "jpg")  # earlier versions know no JPEG
    members = {}
    for shard in (tmp_path / "out").glob("*.tar"):
        with tarfile.open(shard) as tar:
            members |= {m.name: tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")}  # type: ignore[union-attr]
    assert {name.removesuffix(".jpg"): data for name, data in members.items()} == sources(photos)
    assert list(problems(tmp_path / "out")) == []
    for split in ("train", "val"):
        with ShardReader(tmp_path / "out", split, order="full", threads=2) as reader:
            batch = reader.read(range(len(reader)))
            files = reader.read_files(range(len(reader)))
        for key, image, file in zip(batch.keys, batch.images, files.images, strict=True):
            wanted = Image.open(io.BytesIO(sources(photos)[key])).convert("RGB")
            np.testing.assert_array_equal(image, np.asarray(wanted))
            assert file == sources(photos)[key]


def test_the_pixels_are_those_of_a_pack_without_loss(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "keep", KEEP)
    pack(photos, tmp_path / "png", Settings(size=16, shard_size=4, val=0.3))
    pack(tmp_path / "keep", tmp_path / "again", Settings(size=16, shard_size=4, val=0.3))
    for other in ("png", "again"):
        with ShardReader(tmp_path / "keep") as a, ShardReader(tmp_path / other) as b:
            one, two = a.read(range(len(a))), b.read(range(len(b)))
            order = [two.keys.index(key) for key in one.keys]
            np.testing.assert_array_equal(one.images, two.images[order])


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        (
            "x.png",
            png(np.zeros((16, 16, 3), np.uint8)),
            "a PNG, which is not kept; allowed with --image keep",
        ),
        ("x.jpg", jpeg(1, (16, 17)), "16 x 17 pixels; allowed with --image keep: 16 x 16"),
        ("x.jpg", jpeg(1, (32, 32)), "32 x 32 pixels; allowed with --image keep: 16 x 16"),
        ("x.jpg", turned(1), "turned by its metadata; allowed with --image keep: upright ones"),
        ("x.jpg", jpeg(1)[:-200], "truncated or damaged JPEG"),
        ("x.jpg", b"\xff\xd8\xff", "truncated or damaged JPEG"),
    ],
)
def test_what_is_not_kept(photos: Path, tmp_path: Path, name: str, data: bytes, told: str) -> None:
    (photos / "a" / name).write_bytes(data)
    with pytest.raises(InputError, match=told):
        pack(photos, tmp_path / "out", KEEP)
    assert pack(photos, tmp_path / "out", KEEP, on_bad=OnBad("skip")).skipped == 1


def test_a_crop_is_not_kept(photos: Path, tmp_path: Path, command: Command) -> None:
    flags = ["--out", tmp_path / "out", "--size", 16, "--image", "keep", "--jobs", 1]
    code, _, err = command(main, photos, *flags, "--crop", 8)
    assert code == 2 and "16 x 16 pixels; allowed with --image keep: 16 x 16 without a crop of 8" in err
    assert command(main, photos, *flags, "--crop", 16)[0] == 0
    code, _, err = command(main, photos, *flags[:2], "--image", "jpg")
    assert code == 2 and "--image jpg: unknown; allowed: png, webp, npy, keep" in err


def test_goes_on_and_is_repaired(photos: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int, total: int | None) -> None:
        if done > 10:
            raise StoppedError

    pack(photos, tmp_path / "whole", KEEP)
    with pytest.raises(StoppedError):
        pack(photos, tmp_path / "out", KEEP, report=stop)
    pack(photos, tmp_path / "out", KEEP)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")
    broken = Path(shutil.copytree(tmp_path / "whole", tmp_path / "broken"))
    os.truncate(broken / "train-000001.tar", 900)
    assert len(list(repair(broken, photos))) == 1
    assert contents(broken) == contents(tmp_path / "whole")


def test_a_damaged_one_is_told(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "out", KEEP)
    split = Index.load(tmp_path / "out").split("train")
    shard = tmp_path / "out" / split.shards[0].name
    data = bytearray(shard.read_bytes())
    data[int(split.samples[0]["image_offset"]) + 300] ^= 1
    shard.write_bytes(data)
    with ShardReader(tmp_path / "out", order="sequential") as reader, pytest.raises(CorruptSampleError):
        reader.read([0])


@pytest.mark.parametrize("data", [jpeg(1, (8, 8)), png(np.zeros((16, 16, 3), np.uint8)), b"", jpeg(1)[:-99]])
def test_the_decoder_takes_no_other(data: bytes) -> None:
    with pytest.raises(BadSample):
        decoder("jpg")(data, np.empty((16, 16, 3), np.uint8))


def test_earlier_versions_tell_no_jpeg(photos: Path, tmp_path: Path) -> None:
    pack(photos, tmp_path / "png", Settings(size=16, shard_size=4, val=0.3))
    path = tmp_path / "png" / FILE
    path.write_text(path.read_text().replace('"encoding": "png"', '"encoding": "jpg"'))
    with pytest.raises(InputError, match="encoding jpg: only version 4"):
        Index.load(tmp_path / "png")
