"""webdataset's pipeline in our order: stock webdataset's own samples, and the state of the stream."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from diffbase.cli import InputError
from shards.foreign.indexer import index
from shards.packing.packer import pack
from shards.read import CorruptSampleError, ShardReader
from shards.sources.base import AS_IT_IS
from shards.wds import ShardPipeline
from tests.support.foreign_tars import sample as members_of
from tests.support.foreign_tars import write
from tests.support.tiny_set import pixels_of, row_of

BATCH = 12


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory, tiny: Any) -> dict[str, Path]:
    """Thirty pictures of three classes, packed in each encoding."""
    folder = tmp_path_factory.mktemp("classes")
    for number in range(30):
        place = folder / "source" / f"class {number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.png")
    for encoding in ("png", "webp", "npy"):
        pack(folder / "source", folder / encoding, tiny(image=encoding))
    return {encoding: folder / encoding for encoding in ("png", "webp", "npy")}


def stock(folder: Path) -> dict[str, dict[str, Any]]:
    """What webdataset itself reads, by key."""
    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    return {sample["__key__"]: sample for sample in samples}


def order(folder: Path, count: int, **settings: Any) -> list[str]:
    with ShardReader(folder, **settings) as reader:
        return reader.read(range(count)).keys


@pytest.mark.parametrize("encoding", ["png", "webp", "npy"])
def test_the_samples_are_stock_webdatasets_in_our_order(classes: dict[str, Path], encoding: str) -> None:
    folder = classes[encoding]
    theirs = stock(folder)
    found = list(islice(ShardPipeline(folder, batch=BATCH, seed=3), 2 * len(theirs)))
    assert [sample["__key__"] for sample in found] == order(folder, len(found), seed=3, batch=BATCH)
    for sample in found:
        wanted = {k: v for k, v in theirs[sample["__key__"]].items() if k != "__local_path__"}
        assert list(sample.items()) == list(wanted.items())
        assert sample.keys() == {"__key__", "__url__", "cls", "json", encoding}


def test_attributes_without_a_class(packed: Path) -> None:
    theirs = stock(packed)
    for sample in islice(ShardPipeline(packed, batch=BATCH), len(theirs)):
        wanted = theirs[sample["__key__"]]
        assert sample == {name: wanted[name] for name in ("__key__", "__url__", "json", "png")}


def test_other_peoples_tars_in_place(tmp_path: Path, tiny: Any) -> None:
    """Key, image and place are webdataset's; the labels are those of the index."""
    members = [m for n in range(12) for m in members_of(f"k{n}", n, ("jpg", "png", "webp")[n % 3])]
    tar = write(tmp_path / "tars" / "a.tar", members)
    index([str(tar)], tmp_path / "index", tiny(val=0.0, crop=None), AS_IT_IS)
    theirs = {s["__key__"]: s for s in webdataset.WebDataset([str(tar)], shardshuffle=False)}
    pipeline = ShardPipeline(tmp_path / "index", batch=4)
    classes = [attribute.names for attribute in pipeline.samples.schema if attribute.name == "class"]
    found = list(islice(pipeline, 12))
    assert {s["__key__"] for s in found} == theirs.keys()
    for s in found:
        wanted = theirs[s["__key__"]]
        [ending] = s.keys() & {"jpg", "png", "webp"}
        assert s[ending] == wanted[ending]
        assert Path(s["__url__"]).resolve() == tar.resolve()
        variant = json.loads(s["json"])["class"]
        assert classes[0][variant] == wanted["cls"].decode().strip()
    assert next(iter(pipeline.decode("rgb8")))["__key__"] == found[0]["__key__"]


def test_peoples_stages_do_their_work(classes: dict[str, Path]) -> None:
    pipeline = (
        ShardPipeline(classes["png"], batch=BATCH)
        .decode("rgb8")
        .map(lambda sample: sample | {"mean": sample["png"].mean()})
        .to_tuple("png", "cls", "json", "mean")
        .batched(BATCH)
    )
    assert isinstance(pipeline, ShardPipeline)
    with ShardReader(classes["png"], batch=BATCH) as reader:
        expected = reader.read(range(BATCH))
    images, classes_B, json_B, means = next(iter(pipeline))
    assert np.array_equal(images, expected.images)
    assert classes_B.tolist() == [label["class"] for label in json_B] == expected.labels[:, 0].tolist()
    assert np.allclose(means, expected.images.mean((1, 2, 3)))


def test_webdatasets_own_pipeline_takes_the_samples_too(packed: Path) -> None:
    pipeline = webdataset.DataPipeline(
        ShardPipeline(packed, "val", batch=2, order="sequential"),
        webdataset.decode("rgb8"),
        webdataset.to_tuple("__key__", "png"),
    )
    with ShardReader(packed, "val", order="sequential") as reader:
        expected = reader.read(range(5))
    for (key, image), wanted, pixels in zip(islice(pipeline, 5), expected.keys, expected.images, strict=True):
        assert key == wanted and np.array_equal(image, pixels)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_every_sample_once_wherever_the_stream_is_left(packed: Path, data: st.DataObject) -> None:
    """Amid a step too; at another world size at the end of a step, and only there."""
    everything = order(packed, 8 * BATCH, batch=BATCH, seed=2)

    def share(rank: int, world: int, step: int) -> list[str]:
        size = BATCH // world
        firsts = (k * BATCH + rank * size for k in range(step, 8))
        return [key for first in firsts for key in everything[first : first + size]]

    def samples(rank: int, world: int) -> ShardPipeline:
        return ShardPipeline(packed, batch=BATCH, seed=2, rank=rank, world=world)

    def keys(found: ShardPipeline, count: int) -> list[str]:
        return [sample["__key__"] for sample in islice(found, count)]

    world, other = (data.draw(st.sampled_from([1, 2, 3, 4, 12]), "world") for _ in range(2))
    rank, place = data.draw(st.integers(0, world - 1), "rank"), data.draw(st.integers(0, other - 1), "rank")
    left = data.draw(st.integers(0, 6 * BATCH // world), "left at")
    expected = share(rank, world, 0)

    one = samples(rank, world)
    assert keys(one, left) == expected[:left]
    state = json.loads(json.dumps(one.state_dict()))
    again = samples(rank, world)
    again.load_state_dict(state)
    assert keys(again, len(expected) - left) == expected[left:]
    assert keys(again, left) == expected[:left]  # the state was for one iteration

    elsewhere = samples(place, other)
    step, amid = divmod(left, BATCH // world)
    if amid and other != world:
        before = elsewhere.state_dict()
        with pytest.raises(InputError, match=f"amid a step at world size {world}, here it is {other}"):
            elsewhere.load_state_dict(state)
        assert elsewhere.state_dict() == before
    elif not amid:
        elsewhere.load_state_dict(state)
        assert keys(elsewhere, (8 - step) * BATCH // other) == share(place, other, step)


def test_a_state_that_is_none_is_refused(packed: Path) -> None:
    pipeline = ShardPipeline(packed, batch=BATCH)
    state = pipeline.state_at(2)
    for changed in (
        {"taken": 12, "world": 2},
        {"taken": -1},
        {"taken": True},
        {"taken": None},
        {"taken": "1"},
    ):
        with pytest.raises(InputError, match=r"not a stream's state|amid a step"):
            pipeline.load_state_dict(state | changed)
    with pytest.raises(InputError, match="its seed is 1, here it is 0"):
        pipeline.load_state_dict(ShardPipeline(packed, batch=BATCH, seed=1).state_at(2))
    assert pipeline.state_dict() == pipeline.state_at(0) | {"origin": 0}


def test_stages_that_do_not_go_step_by_step_are_refused(packed: Path) -> None:
    pipeline = ShardPipeline(packed, batch=BATCH, rank=0, world=2)
    for make in (
        lambda: pipeline.with_epoch(10),
        lambda: pipeline.repeat(2),
        lambda: pipeline.slice(3),
        lambda: pipeline.mcached(),
        lambda: pipeline.lmdb_cached("cache"),
    ):
        with pytest.raises(InputError, match="has no with_epoch, repeat, slice, mcached or lmdb_cached"):
            make()
    with pytest.raises(
        InputError, match=r"batched\(4, partial=False\) leaves out 2 of the 6 samples of each step"
    ):
        pipeline.batched(4, partial=False)
    keys = pipeline.to_tuple("__key__")
    for found in (keys.batched(3, partial=False), keys.batched(4)):
        assert {key for (batch,) in islice(found, 2) for key in batch} == {k for (k,) in islice(keys, 6)}


def test_a_damaged_file_is_told_or_replaced(copy: Path) -> None:
    shard, key, row = row_of(copy, 2)
    data = bytearray(shard.read_bytes())
    data[row["image_offset"] + row["image_bytes"] // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(CorruptSampleError, match=f"{shard.name}: sample {key}: damaged"):
        list(islice(ShardPipeline(copy, batch=4, order="sequential"), 4))
    with ShardReader(copy, order="sequential", on_error="replace") as reader:
        files, pixels = reader.read_files(range(4)), reader.read(range(4))
    assert files.keys == pixels.keys and files.keys[2] == files.keys[3]
    assert files.images[2] == files.images[3]
    assert all(np.array_equal(pixels_of(f), p) for f, p in zip(files.images, pixels.images, strict=True))


# --- in processes ---


def steps_of(loader: Any, count: int) -> list[list[str]]:
    return [list(keys) for (keys,) in islice(loader, count)]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_change_nothing(packed: Path, start: str) -> None:
    pipeline = ShardPipeline(packed, batch=BATCH).to_tuple("__key__").batched(BATCH)
    expected = steps_of(pipeline, 5)
    loader = DataLoader(
        pipeline, batch_size=None, num_workers=1 + (start == "fork"), multiprocessing_context=start
    )
    assert steps_of(loader, 5) == expected
    if start == "fork":
        one_by_one = ShardPipeline(packed, batch=BATCH).to_tuple("__key__")
        assert steps_of(DataLoader(one_by_one, batch_size=BATCH, num_workers=2), 5) == expected


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batched", [BATCH, 5])
def test_a_stateful_loader_goes_on(packed: Path, workers: int, batched: int) -> None:
    def loader() -> StatefulDataLoader:
        pipeline = ShardPipeline(packed, batch=BATCH).to_tuple("__key__").batched(batched)
        return StatefulDataLoader(pipeline, batch_size=None, num_workers=workers)

    expected = steps_of(loader(), 9)
    for stop in (1, 2, 5):
        first, again = loader(), loader()
        seen = steps_of(first, stop)
        again.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert seen + steps_of(again, 9 - stop) == expected
        assert steps_of(again, 5) == expected[:5]  # a new iteration, from the beginning
