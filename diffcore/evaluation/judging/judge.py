"""The judge: a small convolutional classifier of every attribute at once, trained on real images only.

It never sees a generated image while it learns, and it is bound to the shards that it learned from: a run on
other shards is not judged by it. Its accuracy on held-out real images is the ceiling of every fidelity that
it measures, so that stands beside each.

A folder holds ``judge.safetensors`` (weights) and ``judge.json`` (what it is and how good it is). No pickle.

Shapes: B batch, A attributes, V variants of all attributes together, F features.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator
from safetensors import SafetensorError
from torch import Tensor

from diffbase.cli import InputError
from diffbase.explain import validated
from diffbase.files import renamed, write_json
from diffbase.formats import json_file
from diffbase.redaction import shown
from diffbase.system_error import is_there, sha256_of
from diffcore.diffusion.pixels import to_signal
from diffcore.evaluation.judging.headline import fixed, refusal
from diffcore.evaluation.judging.intervals import Mean, Share, mean_of_shares, wilson
from diffcore.evaluation.judging.network import VERSIONS, JudgeNet, split
from diffcore.runs.data import with_data
from diffcore.runs.model import TrainedModel, load_model
from diffcore.runs.run_folder import STRICT, AttributeRecord
from diffcore.runs.tensors import load_tensors, open_tensors, write_tensors
from shards.schema import UNKNOWN, Attribute
from shards.standin.visible import visible
from shards.table import Index

BATCH = 256


class Accuracy(BaseModel):
    """Of an attribute, on held-out real images; None (nan in older records) where none showed it."""

    model_config = ConfigDict(strict=True, extra="ignore")

    hits: Annotated[int, Field(ge=0)]
    count: Annotated[int, Field(ge=0)]
    share: float | None
    low: float | None
    high: float | None


class Record(BaseModel):
    """judge.json, as far as it is read; its limits are far above what trains."""

    model_config = STRICT

    version: int
    fingerprint: Annotated[str, Field(min_length=1, max_length=128)]
    sha256: Annotated[str, Field(max_length=64)]
    attributes: Annotated[list[AttributeRecord], Field(alias="schema", min_length=1, max_length=10_000)]
    size: Annotated[int, Field(ge=1, le=8192)]
    width: Annotated[int, Field(ge=1, le=4096)]
    features: Annotated[int, Field(ge=1, le=2**16)]
    readable: list[str]
    accuracy: dict[str, Accuracy]
    headline: list[str] | None = None
    """The attributes of the headline; None in older records, and then the schema says."""
    epochs: Annotated[int, Field(ge=1, le=10**9)] = 24
    """Passes over the training images that were asked for."""

    @model_validator(mode="after")
    def _names(self) -> Self:
        names = [attribute.name for attribute in self.attributes]
        if not {*self.readable, *(self.headline or ())} <= set(names) or self.accuracy.keys() != set(names):
            raise ValueError("readable, headline and accuracy are not of the attributes in schema")
        return self


@dataclass(frozen=True)
class Reading:
    """What the judge says of images: variants int64 [N, A] and features fp32 [N, F]."""

    labels_NA: NDArray[np.int64]
    features_NF: NDArray[np.float32]


@dataclass(frozen=True)
class Scores:
    """How often a reading agrees with labels: which ones, a share per attribute, and the mean."""

    hit_NA: NDArray[np.bool_]
    counted_NA: NDArray[np.bool_]
    shares: dict[str, Share]
    mean: Mean


def compare(
    schema: Sequence[Attribute],
    read_NA: NDArray[np.int64],
    labels_NA: NDArray[np.int64],
    among: Sequence[str] | None = None,
) -> Scores:
    """``read`` against ``labels``, both [N, A]; labels that are unknown or cannot be seen do not count.

    ``among`` names the attributes that the mean is over (default: all); every attribute has its share.
    """
    hit_NA = read_NA == labels_NA
    counted_NA = visible(schema, labels_NA) & (labels_NA != UNKNOWN)
    shares = {
        a.name: wilson(int((hit_NA & counted_NA)[:, column].sum()), int(counted_NA[:, column].sum()))
        for column, a in enumerate(schema)
    }
    chosen = [column for column, a in enumerate(schema) if among is None or a.name in among]
    return Scores(hit_NA, counted_NA, shares, mean_of_shares(hit_NA[:, chosen], counted_NA[:, chosen]))


class Judge:
    """A trained judge, ready to read images."""

    def __init__(self, net: JudgeNet, schema: Sequence[Attribute], record: dict[str, Any]) -> None:
        self.net = net.eval().requires_grad_(False)
        self.schema = tuple(schema)
        self.record = record

    @property
    def headline(self) -> tuple[str, ...]:
        """The attributes that the headline is over, however well it reads them."""
        return tuple(self.record.get("headline") or fixed(self.schema))

    @property
    def columns(self) -> list[int]:
        """The headline's columns of labels [N, A]."""
        return [column for column, a in enumerate(self.schema) if a.name in self.headline]

    @property
    def refused(self) -> str | None:
        """Why there is no headline, in a line; None where there is one."""
        epochs = self.record.get("epochs", 24)
        return refusal(self.headline, self.accuracy, epochs)

    @property
    def readable(self) -> list[str]:
        """The attributes that it reads well enough on real images to judge others by, each on its own."""
        return list(self.record["readable"])

    @property
    def accuracy(self) -> dict[str, dict[str, Any]]:
        """Of each attribute, on held-out real images: hits, count, share, low, high.

        The last three are None where no image showed it.
        """
        return dict(self.record["accuracy"])

    def to(self, device: torch.device) -> Judge:
        """Move the network to ``device``, in place; returns this judge."""
        self.net.to(device)
        return self

    def read(self, images_NHWC: NDArray[np.uint8]) -> Reading:
        """Read uint8 images [N, S, S, 3]."""
        device = next(self.net.parameters()).device
        labels, features = [], []
        for first in range(0, len(images_NHWC), BATCH):
            x_BCHW = to_signal(images_NHWC[first : first + BATCH]).to(device)
            with torch.inference_mode():
                features_BF = self.net.features(x_BCHW)
                labels.append(decide(self.schema, self.net.heads(features_BF)).cpu().numpy())
            features.append(features_BF.float().cpu().numpy())
        return Reading(np.concatenate(labels), np.concatenate(features))

    def score(
        self, images_NHWC: NDArray[np.uint8], labels_NA: NDArray[np.int64], reading: Reading | None = None
    ) -> Scores:
        """How often the images show what ``labels`` say. The mean is the headline, nan where ``refused``.

        ``reading`` spares reading them again.
        """
        reading = reading or self.read(images_NHWC)
        over = () if self.refused else self.headline
        return compare(self.schema, reading.labels_NA, labels_NA, over)


def decide(schema: Sequence[Attribute], logits_BV: Tensor) -> Tensor:
    """The likeliest variant of each attribute: int64 [B, A]."""
    return torch.stack([part.argmax(1) for part in split(schema, logits_BV)], dim=1)


def folder_of(data: Path | str, say: str = "--judge FOLDER") -> Path:
    """Where the judge of shards lies if nobody says otherwise: beside them. InputError for a URL.

    ``say``: how to say where it lies.
    """
    if isinstance(data, str):
        raise InputError(f"{shown(data)}: shards behind a URL keep no judge; say where it lies ({say})")
    return data / "judge"


def save(folder: Path, net: JudgeNet, record: dict[str, Any]) -> None:
    """Write the weights, then the record with their SHA-256."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "judge.safetensors"
    with renamed(weights) as temporary:
        write_tensors(temporary, {name: t.cpu().contiguous() for name, t in net.state_dict().items()}, {})
    record = {"version": VERSIONS[-1], **record, "sha256": sha256_of(weights)}
    write_json(folder / "judge.json", record, indent=None)


def load(folder: Path, index: Index | None = None, fingerprint: str | None = None) -> Judge:
    """The judge in ``folder``; InputError if there is none, it is damaged or of other shards.

    ``index`` or ``fingerprint``: of the shards that it must have learned from.
    """
    path = folder / "judge.json"
    if not is_there(path):
        raise InputError(
            f"{path}: no judge here; say where it lies (--judge, or data.judge of a run), or train one: "
            f"python -m diffcore.evaluation.train_judge DATA --out {shlex.quote(str(folder))}"
        )
    tree = json_file.read(path, most=256 << 20, nan=True)
    if isinstance(tree, dict) and isinstance(version := tree.get("version"), int) and version not in VERSIONS:
        raise InputError(f"{path}: version {version}, this code reads 1 to {VERSIONS[-1]}")
    record = validated(Record, tree, f"{path}: not a judge's record")
    known = record.fingerprint
    schema = tuple(a.attribute for a in record.attributes)
    wanted = index.fingerprint if index else fingerprint
    if wanted is not None and wanted != known:
        raise InputError(
            f"{folder}: this judge learned from other shards (index {known[:12]}, not {wanted[:12]}); "
            f"train one on these: python -m diffcore.evaluation.train_judge DATA"
        )
    shape = (record.size, record.width, record.features, record.version)
    weights = folder / "judge.safetensors"
    try:
        if sha256_of(weights) != record.sha256:
            raise InputError(f"{weights}: damaged (its SHA-256 differs from judge.json's)")
        with torch.device("meta"):  # takes no memory, whatever the record says
            planned = JudgeNet(schema, *shape).state_dict()
        wanted_shapes = {name: list(tensor.shape) for name, tensor in planned.items()}
        with open_tensors(weights) as opened:
            shapes = {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
        if shapes != wanted_shapes:
            names = sorted(shapes.keys() | wanted_shapes.keys())
            name = next(name for name in names if shapes.get(name) != wanted_shapes.get(name))
            has, wants = (sizes.get(name, "none") for sizes in (shapes, wanted_shapes))
            raise InputError(f"{weights}: not this judge's weights: {name} is {has}, not {wants}")
        net = JudgeNet(schema, *shape)
        net.load_state_dict(load_tensors(weights))
    except FileNotFoundError:
        raise InputError(f"{weights}: no such file") from None
    except SafetensorError as error:
        raise InputError(f"{weights}: not this judge's weights: {str(error)[:200]}") from error
    return Judge(net, schema, tree)


def open_run(
    run: Path, folder: Path | None, data: str | None, **which: str
) -> tuple[TrainedModel, Judge | None]:
    """The network of a run and the judge of its shards, None where they have no labels.

    ``folder``: the judge's, else the run's config says, or it lies beside the shards. ``data``: where they
    are, if they have moved. ``which``: as ``load_model``. InputError where one of them is not there, or is
    another's.
    """
    model = with_data(load_model(run, **which), data)
    if not model.schema:
        return model, None
    folder = folder or model.config.data.judge or folder_of(model.config.data.path)
    return model, load(folder, fingerprint=model.fingerprint).to(model.device)
