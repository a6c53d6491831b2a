"""Other people's tars in place: the guarantees of the reader, and pixels as a pack has them."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffbase.cli import InputError
from shards.codec.encode import decode_source, prepare
from shards.foreign import checker
from shards.packing.packer import pack
from shards.packing.plan import Settings
from shards.read import CorruptSampleError, ShardReader
from shards.schema import UNKNOWN
from shards.sources import detect
from shards.sources.base import Asked
from shards.sources.contents import look
from shards.sources.tars.webdataset import WebDataset
from shards.table import Index
from tests.support.foreign_tars import (
    FORMATS,
    image,
    indexed,
    like_img2dataset,
    sample,
    write,
    write_numbers,
)


def reference(number: int, ending: str = "jpg", size: int = 5) -> np.ndarray:
    return prepare(decode_source(image(number, ending), ""), "", None, size)


# The guarantees of the reader.


@settings(max_examples=12, deadline=None)
@given(st.data())
def test_order_exactly_once_resume_and_world_sizes(data: st.DataObject) -> None:
    numbers = st.integers(0, 10_000)
    groups = data.draw(st.lists(st.lists(numbers, min_size=1, max_size=6), min_size=1, max_size=4), "tars")
    folders = data.draw(st.sampled_from(["", "a/", "a.b/c d/", "./x/", "ключ/"]), "folder")
    endings = ("jpg", "png", "webp")
    with tempfile.TemporaryDirectory() as name:
        wanted: dict[bytes, tuple[str, int]] = {}
        for k, group in enumerate(groups):
            members = []
            for place, n in enumerate(group):
                members += sample(f"{folders}{place}", n, endings[n % 3], age=10 * (n % 2))
            members = data.draw(st.permutations(members), "members")
            write(Path(name) / "t" / f"{k}.tar", members, data.draw(st.sampled_from(FORMATS), "format"))
            wanted |= {reference(n, endings[n % 3]).tobytes(): (f"c{n % 3}", 10 * (n % 2)) for n in group}
        out = Path(name) / "index"
        asked = Asked(columns=("class", "json.age"))
        indexed(out, Path(name) / "t", asked=asked)
        count = sum(map(len, groups))
        seed = data.draw(st.integers(0, 2**64 - 1), "seed")
        order = data.draw(st.sampled_from(["full", "block", "shards"]), "order")
        with ShardReader(out, seed=seed, order=order, threads=data.draw(st.integers(1, 3))) as reader:
            names = [[*a.names] for a in reader.schema]
            stream = reader.read(range(3 * count))
            for epoch in range(3):
                keys = stream.keys[epoch * count : (epoch + 1) * count]
                assert len(set(keys)) == count
            said = Counter(n for group in groups for n in group)
            seen = Counter(pixels.tobytes() for pixels in stream.images[:count])
            assert seen == Counter(
                {p: c for n, c in said.items() if (p := reference(n, endings[n % 3]).tobytes())}
            )
            for pixels, labels in zip(stream.images, stream.labels.tolist(), strict=True):
                class_told, age = wanted[pixels.tobytes()]
                told = {a.name: v for a, v in zip(reader.schema, labels, strict=True)}
                for column, value in (("class", class_told), ("age", age)):
                    if column in told:  # else all are alike
                        at = [a.name for a in reader.schema].index(column)
                        assert names[at][told[column]] == str(value)

        resume, world = data.draw(st.integers(0, 2 * count), "resume"), data.draw(st.integers(1, 6), "world")
        found: dict[int, bytes] = {}
        for rank in range(world):
            with ShardReader(out, seed=seed, order=order) as other:
                mine = np.arange(resume + rank, 3 * count, world)
                batch = other.read(mine)
                found |= {p: x.tobytes() for p, x in zip(mine.tolist(), batch.images, strict=True)}
        assert [found[p] for p in range(resume, 3 * count)] == [x.tobytes() for x in stream.images[resume:]]


@pytest.mark.parametrize("crop", [None, 7])
def test_pixels_keys_and_labels_are_those_of_a_pack(tars: Path, tmp_path: Path, crop: int | None) -> None:
    given = Settings(size=6, crop=crop, val=0.3)
    indexed(tmp_path / "index", tars, given=given)
    pack(tars, tmp_path / "packed", given)
    for split in ("train", "val"):
        with (
            ShardReader(tmp_path / "index", split, order="sequential") as here,
            ShardReader(tmp_path / "packed", split, order="sequential") as there,
        ):
            one, other = here.read(range(len(here))), there.read(range(len(there)))
            assert here.schema == there.schema
            assert one.keys == other.keys and len(one.keys) > 3
            assert np.array_equal(one.images, other.images) and np.array_equal(one.labels, other.labels)


def test_a_replaced_sample_is_the_same_for_every_world(tars: Path, tmp_path: Path) -> None:
    indexed(tmp_path / "index", tars)
    where = Index.load(tmp_path / "index").split("train").samples[3]
    with (tars / "0.tar").open("r+b") as file:
        file.seek(int(where["image_offset"]) + 30)
        file.write(b"damaged")
    with (
        ShardReader(tmp_path / "index", order="sequential") as reader,
        pytest.raises(CorruptSampleError, match=r"0\.tar: sample k3: damaged"),
    ):
        reader.read([3])
    for rank in range(2):
        with ShardReader(
            tmp_path / "index", order="sequential", on_error="replace", report=lambda line: None
        ) as reader:
            assert reader.read([3 + rank, 3]).keys[1] == "k4"


def test_an_index_among_the_tars_moves_with_them(tars: Path, tmp_path: Path) -> None:
    (tars / "0.tar").rename(tars / "my photos.tar")
    indexed(tars, tars)
    moved = tars.rename(tmp_path / "elsewhere")
    with ShardReader(moved) as reader:
        assert len(reader.read(range(30)).keys) == 30
    assert not list(checker.problems(moved))
    assert all(shard.place is None for shard in Index.load(moved).split("train").shards)


# What others write.


def test_img2dataset(tmp_path: Path) -> None:
    for shard in range(2):
        like_img2dataset(tmp_path / "laion", shard, range(20 * shard, 20 * shard + 20), {"license": None})
    notes = indexed(tmp_path / "index", tmp_path / "laion").notes
    with ShardReader(tmp_path / "index", order="sequential") as reader:
        assert [(a.name, a.names) for a in reader.schema] == [("level", ("0", "1", "2", "3"))]
        batch = reader.read(range(40))
        assert batch.labels[:, 0].tolist() == [n % 4 for n in range(40)]
        assert batch.keys[:2] == ["000000000", "000000001"]
        assert all(np.array_equal(batch.images[n], reference(n)) for n in range(40))
    assert any("url" in note for note in notes) and any("caption" in note for note in notes)


@pytest.mark.slow
def test_stock_webdataset_writes_and_reads_the_same(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar"), encoder=True) as sink:
        for n in range(12):
            sink.write(
                {
                    "__key__": f"some.where/n{n}",
                    "png": image(n, "png"),
                    "cls": n % 3,
                    "json": {"a": 5 * (n % 2)},
                }
            )
    indexed(tmp_path / "index", tmp_path / "w.tar")
    theirs = list(webdataset.WebDataset(str(tmp_path / "w.tar"), shardshuffle=False).decode("rgb8"))
    with ShardReader(tmp_path / "index", order="sequential") as reader:
        batch = reader.read(range(12))
        assert len(theirs) == len(reader) == 12
        names = {a.name: a.names for a in reader.schema}
        for one, pixels, labels in zip(theirs, batch.images, batch.labels, strict=True):
            assert np.array_equal(pixels, prepare(one["png"], "", None, 5))
            told = {a: names[a][v] for a, v in zip(names, labels, strict=True)}
            assert told == {"class": str(one["cls"]), "a": str(one["json"]["a"])}


def test_our_own_shards_are_webdataset_tars(packed: Path, tmp_path: Path) -> None:
    pack(
        [str(path) for path in sorted(packed.glob("train-*.tar"))],
        tmp_path / "again",
        Settings(size=4, val=0),
    )
    with (
        ShardReader(packed, order="sequential") as one,
        ShardReader(tmp_path / "again", order="sequential") as other,
    ):
        a, b = one.read(range(len(one))), other.read(range(len(other)))
        assert a.keys == b.keys and np.array_equal(a.images, b.images)


def test_labels_that_some_samples_lack_are_unknown(tmp_path: Path) -> None:
    members = [
        ("a.jpg", image(1)),
        ("a.cls", b"cat"),
        ("b.jpg", image(2)),
        ("c.jpg", image(3)),
        ("c.cls", b"dog"),
    ]
    indexed(tmp_path / "index", write(tmp_path / "x.tar", members))
    with ShardReader(tmp_path / "index", order="sequential") as reader:
        assert reader.read(range(3)).labels[:, 0].tolist() == [0, UNKNOWN, 1]
        assert reader.schema[0].names == ("cat", "dog")
    assert not list(checker.problems(tmp_path / "index"))


def test_few_texts_are_classes(tmp_path: Path) -> None:
    members = [
        m for n in range(20) for m in ((f"{n}.jpg", image(n)), (f"{n}.txt", b"cat" if n % 2 else b"dog"))
    ]
    indexed(tmp_path / "index", write(tmp_path / "x.tar", members))
    assert [(a.name, a.names) for a in Index.load(tmp_path / "index").schema] == [("class", ("cat", "dog"))]


def test_the_same_key_in_two_tars_is_two_samples(tmp_path: Path) -> None:
    for name in ("a/0.tar", "b/0.tar"):
        write_numbers(tmp_path / name, range(4))
    indexed(tmp_path / "index", tmp_path / "a", tmp_path / "b")
    split = Index.load(tmp_path / "index").split("train")
    assert len({split.key(n) for n in range(8)}) == 8
    assert not list(checker.problems(tmp_path / "index"))


def test_which_of_several_images(tmp_path: Path) -> None:
    mask = [m for n in range(4) for m in ((f"{n}.mask.png", image(n, "png")), (f"{n}.jpg", image(n + 50)))]
    path = write(tmp_path / "x.tar", mask)
    for field, number, ending in ((None, 50, "jpg"), ("mask.png", 0, "png"), ("webp,MASK.png", 0, "png")):
        out = tmp_path / f"{number}{field}".replace(",", "")
        indexed(out, path, asked=Asked(image_field=field))
        with ShardReader(out, order="sequential") as reader:
            assert np.array_equal(reader.read([0]).images[0], reference(number, ending))
    with pytest.raises(InputError, match=r"sample 0 has no webp \(--image-field\), but jpg, mask\.png"):
        indexed(tmp_path / "n", path, asked=Asked(image_field="webp"))
    two = write(tmp_path / "y.tar", [("a.jpg", image(1)), ("a.png", image(1, "png"))])
    with pytest.raises(InputError, match=r"sample a has several images \(jpg, png\); choose one"):
        indexed(tmp_path / "n", two)
    both = write(tmp_path / "z.tar", [("a.left.jpg", image(1)), ("b.left.jpg", image(2))])
    indexed(tmp_path / "left", both)
    assert len(Index.load(tmp_path / "left").split("train")) == 2


def test_a_source_is_known_by_its_members(tars: Path, packed: Path, tmp_path: Path) -> None:
    for path in (tars, tars / "0.tar", next(packed.glob("train-*.tar"))):
        assert detect(path).kind == "webdataset"
    renamed = (tars / "0.tar").rename(tmp_path / "tars.bin")
    assert detect(renamed).kind == "webdataset"
    classes = write(tmp_path / "x.tar", [(f"{c}/{n}.jpg", image(n)) for c in "ab" for n in range(3)])
    assert not WebDataset.claims(look(classes))
    (tars / "a").mkdir()
    (tars / "a" / "1.jpg").write_bytes(image(1))
    assert not WebDataset.claims(look(tars))  # class folders, say, and a tar that nobody meant
    assert "1 other file or folder passed over (a/)" in detect(tars, "webdataset").notes
    (tmp_path / "empty").mkdir()
    (tmp_path / "no.tar").write_bytes(b"no tar")
    assert not WebDataset.claims(look(tmp_path / "empty"))
    with pytest.raises(InputError, match=r"no\.tar: truncated or damaged"):
        look(tmp_path / "no.tar")
