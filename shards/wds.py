"""Packed shards as webdataset's samples in our order, for the stages that people have.

    pipeline = ShardPipeline("data/demo", batch=256, seed=0).decode("rgb8").to_tuple("png", "json")
    loader = StatefulDataLoader(pipeline.batched(64), batch_size=None, num_workers=2)

The samples are those that webdataset reads from packed shards, undecoded (of other people's tars, the image
as it is and the labels of the index); the stream, a rank's share of it and the state are those of
``shards.torch``. The stages see one step's samples at a time, to their end: so none
keeps a sample back from one step to the next (webdataset's ``batched`` does, else), a worker has all of a
step, and a resume is exact. Amid a step it makes that step again and leaves out what came before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn, Unpack

import webdataset
from webdataset.filters import default_collation_fn

from diffbase.cli import InputError
from shards.codec.encode import check_head
from shards.codec.labels import encode_labels
from shards.torch import Share, Steps

Members = dict[str, Any]
"""A sample: ``__key__``, ``__url__``, text; ``png`` (webp, npy), ``json``, of a class ``cls``, bytes.

Of other people's tars the image's name is what its bytes are: jpg, gif, tiff, bmp and avif too.
"""
Stages = Callable[[Iterator[Members]], Iterator[Any]]
END = object()


class ShardSamples(Steps):
    """One rank's share of the endless stream as webdataset's samples; see ``Steps``."""

    _taken = 0  # of what the stages make of the step to come, what was handed out already

    def of(self, step: int) -> Iterator[Members]:
        """This rank's samples of a step."""
        files = self.reader.read_files(self.positions(step))
        names = [attribute.name for attribute in self.schema]
        encoding = self.reader.index.header.preprocessing.encoding
        foreign = self.reader.index.header.is_foreign
        for key, place, variants, image in zip(
            files.keys, files.places, files.labels.tolist(), files.images, strict=True
        ):
            labels, number = encode_labels(dict(zip(names, variants, strict=True)))
            members = {} if number is None else {"cls": number}
            ending = _ending(image, key) if foreign else encoding
            yield {"__key__": key, "__url__": place, **members, "json": labels, ending: image}

    def through(self, stages: Stages) -> Iterator[Any]:
        """A new iteration: what ``stages`` make of each step's samples whose turn it is in this worker."""
        if not self._loaded:
            self._taken = 0
        steps = self.turns()
        return self._through(steps, stages, self._next, self._taken)

    def _through(self, steps: Iterator[int], stages: Stages, begin: int, left_out: int) -> Iterator[Any]:
        for step in steps:
            taken = left_out if step == begin else 0
            made = islice(stages(self.of(step)), taken, None)
            item = next(made, END)
            while item is not END:
                following = next(made, END)  # is it the last one?
                taken += 1
                self._next, self._taken = (step + 1, 0) if following is END else (step, taken)
                yield item
                item = following

    def state_dict(self) -> dict[str, Any]:
        """Where the newest iteration is, in plain numbers and text."""
        return super().state_dict() | {"taken": self._taken}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, amid a step at the same world size only; else as ``Steps``."""
        super().load_state_dict(state)
        self._taken = state["taken"]

    def _state(self, origin: int | None, step: int) -> dict[str, Any]:
        return super()._state(origin, step) | {"taken": 0, "world": self.world}

    def _load(self, given: dict[str, Any]) -> None:
        taken, world = given.pop("taken", None), given.pop("world", None)
        if type(taken) is not int or not 0 <= taken < 1 << 62:
            raise InputError(f"not a stream's state (taken {taken!r:.40})")
        if taken and world != self.world:
            raise InputError(
                f"the state was taken amid a step at world size {world!r:.40}, here it is {self.world}; "
                f"allowed: the same, or the state at the end of a step"
            )


def _ending(image: bytes, key: str) -> str:
    """webdataset's for an image as somebody else made it; InputError for one that is none."""
    name, *_ = check_head(image, f"sample {key}")
    return {"JPEG": "jpg"}.get(name, name.lower())


class ShardPipeline(webdataset.DataPipeline, webdataset.FluidInterface):  # type: ignore[misc]
    """A webdataset pipeline over one rank's share of the endless stream, with its state; see ``Steps``.

    Stages come by webdataset's methods (``decode``, ``map``, ``to_tuple``, ``batched``, ...). Batches are all
    of one size where it divides batch / world. Those that need all of the stream, or its end, are refused.
    Settings and errors are those of ``Steps``.
    """

    def __init__(
        self, folder: Path | str, split: str = "train", *, batch: int, **share: Unpack[Share]
    ) -> None:
        super().__init__(ShardSamples(folder, split, batch=batch, **share))

    @property
    def samples(self) -> ShardSamples:
        """Where the samples come from."""
        found = self.pipeline[0]
        assert isinstance(found, ShardSamples)
        return found

    def iterator(self) -> Iterator[Any]:
        """A new iteration, without end."""
        return self.samples.through(self._stages)

    def _stages(self, samples: Iterator[Members]) -> Iterator[Any]:
        made: Iterator[Any] = samples
        for stage in self.pipeline[1:]:
            made = self.invoke(stage, made)
        return made

    def batched(
        self, batchsize: int, collation_fn: Any = default_collation_fn, partial: bool = True
    ) -> ShardPipeline:
        """webdataset's stage; InputError where ``partial=False`` would leave samples out of every step."""
        share = self.samples.batch // self.samples.world
        if not partial and share % batchsize:
            raise InputError(
                f"batched({batchsize}, partial=False) leaves out {share % batchsize} of the {share} samples "
                f"of each step; allowed: sizes that divide {share}, or partial=True"
            )
        batched: ShardPipeline = super().batched(batchsize, collation_fn, partial)
        return batched

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        """InputError: this stage of webdataset's would see each step for the whole of the data."""
        raise InputError(
            "a stream without end that comes step by step has no with_epoch, repeat, slice, mcached or "
            "lmdb_cached; take from one iterator as many samples as an epoch is to have"
        )

    with_epoch = repeat = slice = mcached = lmdb_cached = _refused

    def state_at(self, step: int) -> dict[str, Any]:
        """The state after ``step`` steps of a run, for any number of workers; see ``load_state_dict``."""
        return self.samples.state_at(step)

    def state_dict(self) -> dict[str, Any]:
        """Where the newest iteration is, in plain numbers and text."""
        return self.samples.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on there, in the next iteration or in each; see ``Steps``, whose errors it raises."""
        self.samples.load_state_dict(state)
