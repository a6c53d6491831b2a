"""Folders of images: labels from the folders' names, safe keys, and one line for every other layout."""

from __future__ import annotations

import io
import json
import os
import re
import tarfile
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from diffbase.cli import InputError
from shards.checking.verifier import problems
from shards.pack import main
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import ShardReader
from shards.schema import Attribute
from shards.sources import detect
from shards.sources.base import KEY
from shards.sources.imagefolder import ImageFolder
from shards.sources.layout import key_of
from shards.table import Index
from tests.support.tiny_set import Command, contents, keys_of, pixels_of

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".JPEG": "JPEG", ".webp": "WEBP"}


def picture(suffix: str = ".png", shade: int = 90, size: tuple[int, int] = (10, 6), **given: object) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", size, (shade, 30, 200)).save(stream, FORMATS[suffix], **given)
    return stream.getvalue()


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Three classes in three formats; 10 comes after 2, as people count."""
    for shade, name in enumerate(["2", "10", "Grüne Äpfel"]):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number, suffix in enumerate([*FORMATS, ".png"]):
            (tmp_path / "set" / name / f"a{number}{suffix}").write_bytes(picture(suffix, 60 * shade))
    (tmp_path / "set" / ".DS_Store").touch()
    (tmp_path / "set" / "2" / ".thumbs").touch()
    return tmp_path / "set"


def test_class_folders(classes: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(classes, out, Settings(size=4, val=0.3, shard_size=5))
    index = Index.load(out)
    assert index.schema == (Attribute("class", 3),)
    assert index.header.variant_names == {"class": ("2", "10", "Grüne Äpfel")}
    assert index.header.source.kind == "imagefolder" and index.header.preprocessing.crop is None
    assert list(problems(out)) == []
    seen = 0
    for name, split in index.splits.items():
        with ShardReader(out, name, order="sequential") as reader:
            batch = reader.read(range(len(split)))
        # Each class has its own shade of red, whatever the format.
        assert np.abs(batch.images[:, 0, 0, 0] - 60.0 * batch.labels[:, 0]).max() <= 3
        for shard in split.shards:
            with tarfile.open(out / shard.name) as archive:
                members = {m.name: archive.extractfile(m).read() for m in archive}  # type: ignore[union-attr]
            for member, data in members.items():
                if member.endswith(".cls"):
                    label = json.loads(members[member.removesuffix("cls") + "json"])
                    assert label == {"class": int(data)}
                    seen += 1
    assert seen == 15


def test_stock_reader_takes_the_class(classes: Path, tmp_path: Path) -> None:
    import webdataset

    pack(classes, tmp_path / "out", Settings(size=4, val=0))
    stock = webdataset.WebDataset(str(tmp_path / "out" / "train-000000.tar"), shardshuffle=False)
    for image, number, labels in stock.decode("rgb8").to_tuple("png", "cls", "json"):
        assert image.shape == (4, 4, 3) and labels == {"class": number}


def test_flat_folder_has_no_condition(tmp_path: Path, command: Command) -> None:
    (tmp_path / "set").mkdir()
    for number, suffix in enumerate(FORMATS):
        (tmp_path / "set" / f"view {number}{suffix}").write_bytes(picture(suffix))
    code, out, _ = command(main, tmp_path / "set", "--out", tmp_path / "out", "--val", 0, "--jobs", 1)
    assert code == 0 and out.startswith(f"{tmp_path / 'set'}: imagefolder, no labels, 4 samples\n")
    assert Index.load(tmp_path / "out").schema == ()
    with ShardReader(tmp_path / "out") as reader:
        batch = reader.read(range(4))
    assert batch.labels.shape == (4, 0) and batch.images.shape == (4, 64, 64, 3)
    assert list(problems(tmp_path / "out")) == []


def test_same_bytes_and_mixed_classes(tmp_path: Path) -> None:
    for name in ("ant", "bee"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(40):
            (tmp_path / "set" / name / f"{number}.png").write_bytes(picture(shade=number))
    settings = Settings(size=4, shard_size=20)
    for out, jobs in (("one", 1), ("two", 2)):
        pack(tmp_path / "set", tmp_path / out, settings, jobs=jobs)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {key.split("__")[0] for key in keys_of(tmp_path / "one", "train")[:20]} == {"ant", "bee"}


def test_largest_square_is_the_default_crop(tmp_path: Path) -> None:
    """Red left and right of a green square: without --crop, the green is all that is left."""
    pixels = np.zeros((8, 20, 3), np.uint8)
    pixels[:, 6:14, 1], pixels[:, :6, 0], pixels[:, 14:, 0] = 255, 255, 255
    (tmp_path / "set").mkdir()
    Image.fromarray(pixels).save(tmp_path / "set" / "a.png")
    pack(tmp_path / "set", tmp_path / "out", Settings(size=16, val=0))
    with ShardReader(tmp_path / "out") as reader:
        assert (reader.read([0]).images == (0, 255, 0)).all()
    with pytest.raises(InputError, match="20 x 8 pixels, too small for --crop 9"):
        pack(tmp_path / "set", tmp_path / "other", Settings(size=16, crop=9, val=0))


def test_photo_on_its_side_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter, clockwise
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 16))  # the upper half, which becomes the right one
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "a.jpg", quality=100, exif=exif)
    pack(tmp_path / "set", tmp_path / "out", Settings(size=8, val=0))
    with ShardReader(tmp_path / "out") as reader:
        (pixels,) = reader.read([0]).images
    assert pixels[:, :3].max() < 20 and pixels[:, 5:].min() > 235


BAD_FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text file": (lambda d: (d / "2" / "notes.txt").touch(), r"notes\.txt: not an image by its name"),
    "other format": (lambda d: (d / "2" / "b.png").write_bytes(b"GIF89a junk"), r"b\.png: not a PNG, JPEG"),
    "cut jpg": (
        lambda d: (d / "2" / "b.jpg").write_bytes(picture(".jpg", size=(900, 900))[:1500]),
        r"b\.jpg: truncated or damaged JPEG",
    ),
    "cut webp": (
        lambda d: (d / "2" / "b.webp").write_bytes(picture(".webp")[:-9]),
        r"b\.webp: truncated or damaged WEBP",
    ),
    "empty file": (lambda d: (d / "2" / "b.png").touch(), r"b\.png: an empty file"),
    "empty class": (lambda d: (d / "none").mkdir(), r"none: an empty class folder"),
    "mixed": (lambda d: (d / "b.png").write_bytes(picture()), r"mixed: b\.png lies beside 2/"),
    "too deep": (lambda d: (d / "2" / "train").mkdir(), r"train: a folder inside a class folder"),
    "same key": (
        lambda d: (d / "2" / "a0.webp").write_bytes(picture(".webp")),
        r"a0\.webp: has the same key as a0\.png",
    ),
    "pipe": (lambda d: os.mkfifo(d / "2" / "b.png"), r"b\.png: not a plain file"),
    "odd name": (lambda d: (d / "2").rename(d / "a\nb"), r"cannot be printed"),
}


@pytest.mark.parametrize("what", BAD_FOLDERS)
def test_bad_folder_is_one_line(classes: Path, tmp_path: Path, command: Command, what: str) -> None:
    spoil, told = BAD_FOLDERS[what]
    spoil(classes)
    code, _, err = command(main, classes, "--out", tmp_path / "out", "--jobs", 1)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(told, err), err
    assert not (tmp_path / "out" / "index.json").exists()


def test_a_set_with_tables_is_cartoon_set(classes: Path, make_source, tmp_path: Path) -> None:
    assert detect(classes).kind == "imagefolder"
    assert detect(make_source(tmp_path / "cs", range(3))).kind == "cartoonset"
    assert detect(make_source(tmp_path / "nested", range(12), nested=True)).kind == "cartoonset"
    digits = tmp_path / "digits" / "0"
    digits.mkdir(parents=True)
    (digits / "a.png").write_bytes(picture())
    assert detect(digits.parent).kind == "imagefolder"
    with pytest.raises(InputError, match=r"data_batch_1\.bin is missing"):
        detect(classes, "cifar10")


names = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=90)


@settings(max_examples=300, deadline=None)
@given(
    st.sets(
        st.tuples(names | st.text("a_-. ", min_size=1, max_size=6), st.text("a_-. ", min_size=1)), max_size=9
    )
)
def test_keys_are_safe_and_unique(files: set[tuple[str, str]]) -> None:
    keys = [key_of(PurePosixPath(group, f"{stem}.png")) for group, stem in files]
    assert all(KEY.fullmatch(key) for key in keys)
    assert len(set(keys)) == len(files)


def test_plain_names_stay_readable() -> None:
    assert key_of(PurePosixPath("0001.jpg")) == "0001"
    assert key_of(PurePosixPath("n01/n01_7.JPEG")) == "n01__n01_7"
    assert re.fullmatch("hot_dog__a-b-[0-9a-f]{16}", key_of(PurePosixPath("hot_dog/a b.png")))
    assert re.fullmatch("image-[0-9a-f]{16}", key_of(PurePosixPath("….png")))
    assert re.fullmatch("a-[0-9a-f]{16}", key_of(PurePosixPath("кошка/a.png")))


def test_digest_tells_another_content(classes: Path) -> None:
    before = ImageFolder(classes).digest()
    assert ImageFolder(classes).digest() == before
    (classes / "2").rename(classes / "3")
    assert ImageFolder(classes).digest() != before


def test_alpha_over_white(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for suffix in ("png", "webp"):
        Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "set" / f"{suffix}.{suffix}")
    pack(tmp_path / "set", tmp_path / "out", Settings(size=4, val=0))
    with ShardReader(tmp_path / "out") as reader:
        assert (reader.read([0, 1]).images == 255).all()


def test_grey_and_cmyk_jpegs(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    for mode in ("L", "CMYK"):
        Image.new("RGB", (8, 8), "white").convert(mode).save(tmp_path / "set" / f"{mode}.jpg")
    pack(tmp_path / "set", tmp_path / "out", Settings(size=4, val=0))
    with ShardReader(tmp_path / "out") as reader:
        assert reader.read([0, 1]).images.min() >= 250
    assert pixels_of((tmp_path / "set" / "L.jpg").read_bytes()).ndim == 2


def test_links_inside_are_followed(classes: Path) -> None:
    (classes / "2" / "link.png").symlink_to("../10/a0.png")
    (classes / "3").symlink_to("2")
    assert len(list(ImageFolder(classes).samples())) == 3 * 5 + 1 + 6
    (classes.parent / "other").symlink_to(classes)  # the source itself may be one
    assert len(list(ImageFolder(classes.parent / "other").samples())) == 3 * 5 + 1 + 6


@pytest.mark.parametrize(
    ("place", "to", "told"),
    [
        ("2/x.png", "../../outside/secret.png", "leads out of .*cp -rL"),
        ("2/x.png", "{outside}/secret.png", "leads out of .*cp -rL"),
        ("x", "../outside", "leads out of .*cp -rL"),
        ("2/x.png", "x.png", "leads nowhere"),
        ("2/x.png", "absent.png", "leads nowhere"),
        ("x", "/proc/self/fd", "leads out of "),
    ],
)
def test_links_that_lead_out_are_refused(
    classes: Path, command: Command, place: str, to: str, told: str
) -> None:
    outside = classes.parent / "outside"
    outside.mkdir()
    (outside / "secret.png").write_bytes(picture())
    (classes / place).symlink_to(to.format(outside=outside))
    code, _, err = command(main, classes, "--out", classes.parent / "out", "--jobs", 1)
    assert code == 2 and err.count("\n") == 1 and re.search(told, err)
    assert not (classes.parent / "out").exists()


def test_class_folders_are_bounded(classes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.sources.layout.VARIANTS_CAP", 2)
    with pytest.raises(InputError, match="3 class folders; at most 2 are allowed"):
        ImageFolder(classes)
