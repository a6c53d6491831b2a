"""Three encodings of a packed image: equal pixels, the formats' own readers agree, nothing else gets in."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from shards.codec import ENCODINGS
from shards.codec.decode import BadSample, decode_image, npy_head, webp_size
from shards.codec.encode import encode_pixels
from shards.pack import main
from shards.packing.packer import pack
from shards.read import ShardReader
from shards.table import Index
from shards.verify import main as verify
from tests.support.tiny_set import Command, pixels_of


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def test_equal_pixels_in_all_encodings(make_source, tiny, tmp_path: Path, command: Command) -> None:
    source = make_source(tmp_path / "source", range(20))
    batches = []
    for encoding in ENCODINGS:
        out = tmp_path / encoding
        pack(source, out, tiny(image=encoding, val=0.0))
        assert Index.load(out).header.preprocessing.encoding == encoding
        assert command(verify, out)[0] == 0
        with ShardReader(out, order="sequential") as reader:
            batches.append(reader.read(range(20)))
    for batch in batches[1:]:
        assert batch.keys == batches[0].keys
        assert np.array_equal(batch.images, batches[0].images)
        assert np.array_equal(batch.labels, batches[0].labels)
    code, _, err = command(
        main, source, "--out", tmp_path / "png", "--size", 4, "--crop", 8, "--shard-size", 7, "--val", 0,
        "--image", "npy",
    )  # fmt: skip
    assert code == 2 and "encoding is 'png' there, 'npy' asked" in err


def test_stock_readers_take_all_encodings(make_source, tiny, tmp_path: Path) -> None:
    import webdataset

    source = make_source(tmp_path / "source", range(7))
    found = []
    for encoding in ENCODINGS:
        pack(source, tmp_path / encoding, tiny(image=encoding, val=0.0))
        shard = str(tmp_path / encoding / "train-000000.tar")
        stock = webdataset.WebDataset(shard, shardshuffle=False).decode("rgb8")
        found.append([sample[encoding] for sample in stock])
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 7, 3), (64, 64, 3), (4096, 4096, 3)])
def test_npy_is_what_numpy_writes(shape: tuple[int, ...]) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, np.zeros(shape, np.uint8), version=(1, 0), allow_pickle=False)
    assert stream.getvalue().startswith(npy_head(*shape))
    pixels = noise(4, 7)
    assert np.array_equal(np.load(io.BytesIO(encode_pixels(pixels, "npy")), allow_pickle=False), pixels)


@pytest.mark.parametrize(
    "given", [{"lossless": True}, {"quality": 60}, {"quality": 60, "exif": b"Exif\0\0MM"}]
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_head_of_a_webp(given: dict[str, object], mode: str) -> None:
    stream = io.BytesIO()
    Image.new(mode, (33, 17)).save(stream, "WEBP", **given)
    whole = stream.getvalue()
    assert webp_size(whole) == (33, 17)
    assert [webp_size(whole[:length]) for length in range(30)] == [None] * 30
    assert webp_size(whole[:12] + b"VP9 " + whole[16:]) is None


def saved(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array, allow_pickle=True)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("encoding", "data"),
    [
        ("npy", saved(np.zeros((4, 4, 3), np.int8))),
        ("npy", saved(np.zeros((4, 4, 4), np.uint8))),
        ("npy", saved(np.asfortranarray(noise(4, 4)))),
        ("npy", saved(np.array([{}], object))),
        ("npy", saved(noise(4, 4))[:-1]),
        ("npy", saved(noise(4, 4)) + b"\0"),
        ("npy", encode_pixels(noise(4, 4), "png")),
        ("png", encode_pixels(noise(4, 4), "webp")),
        ("png", encode_pixels(noise(4, 5), "png")),
        ("webp", encode_pixels(noise(4, 4), "png")),
        ("webp", encode_pixels(noise(5, 4), "webp")),
        ("webp", encode_pixels(noise(4, 4), "webp")[:-20]),
        ("webp", b""),
    ],
)
def test_other_data_is_told(encoding: str, data: bytes) -> None:
    with pytest.raises(BadSample, match=r"not a|damaged"):
        decode_image(data, np.empty((4, 4, 3), np.uint8), encoding)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_mutated_image_is_told_or_read(data: st.DataObject) -> None:
    encoding = data.draw(st.sampled_from(ENCODINGS))
    whole = encode_pixels(noise(6, 6), encoding)
    place = data.draw(st.integers(0, len(whole) - 1))
    mutated = whole[:place] + data.draw(st.binary(max_size=8)) + whole[place + data.draw(st.integers(0, 9)) :]
    out = np.empty((6, 6, 3), np.uint8)
    try:
        decode_image(mutated, out, encoding)
    except BadSample:
        return
    if encoding != "npy":
        assert np.array_equal(pixels_of(mutated), out)
