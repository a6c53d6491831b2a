"""Training the judge of packed shards: a classifier with one head per attribute, on real images only.

The best state on the validation split, by what the headline is over, is kept, and training ends when that no
longer improves.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from diffbase import cli
from diffbase.cli import InputError
from diffbase.line import say
from diffbase.page.kit import percent
from diffbase.redaction import shown
from diffbase.tables import TextTable
from diffcore.diffusion.pixels import to_signal
from diffcore.engine.ranks import one_device
from diffcore.evaluation.judging.headline import READABLE, chosen, refusal, title
from diffcore.evaluation.judging.judge import BATCH as READ_BATCH
from diffcore.evaluation.judging.judge import Judge, compare
from diffcore.evaluation.judging.muon import Muon
from diffcore.evaluation.judging.network import FEATURES, WIDTH, JudgeNet, split
from diffcore.runs.run_folder import AttributeRecord, code_version
from shards.prefetch import prefetch
from shards.read import ShardReader
from shards.schema import UNKNOWN, Attribute
from shards.standin.visible import visible

BATCH = 32
EPOCHS = 10
PATIENCE = 6
"""Validations without a better one before training ends."""
ROUND = 20_000
"""Most images between two validations: of a large set, an epoch is too long to wait for."""
LR, MUON, DECAY = 3e-3, 5.0, 0.02
"""AdamW's largest rate; Muon's, as a multiple of it (batch norm takes any); weight decay."""
WARM_UP = 0.2
"""Share of the steps in which the rate rises, by a cosine; it falls to nothing over the others."""
NOISE = 0.06
"""Largest standard deviation of the noise on training images, whose range is 2."""
HELD_OUT = 20_000
"""Most validation images that are looked at."""
CONFUSED = 128
"""Most variants of an attribute whose confusion is recorded: it takes their number squared."""


def train(
    data: Path | str,
    *,
    epochs: int = EPOCHS,
    width: int = WIDTH,
    features: int = FEATURES,
    lr: float = LR,
    seed: int = 0,
    on_error: str = "raise",
    headline: str | None = None,
) -> tuple[JudgeNet, dict[str, Any]]:
    """The best network on the validation split, and its record. ``on_error``: ShardReader's.

    ``headline``: the attributes that the mean is over ("a,b"), where not those that the schema says.
    """
    reader = ShardReader(data, "train", seed=seed, threads=2, on_error=on_error)
    if not reader.schema:
        raise InputError(f"{shown(data)}: these shards have no labels, so there is nothing to judge by")
    over = chosen(reader.schema, headline)
    if not len(reader.index.split("val")):
        raise InputError(f"{shown(data)}: no validation split: pack with --val above 0")
    with ShardReader(data, "val", order="sequential", on_error=on_error) as held_out:
        real = held_out.read(np.arange(min(len(held_out), HELD_OUT)))

    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    device = one_device()
    schema = reader.schema
    net = JudgeNet(schema, reader.size, width, features).to(device)
    batch = min(BATCH, max(8, len(reader) // 32))
    total = max(epochs * len(reader) // batch, 20 * epochs)
    between = max(min(len(reader), ROUND) // batch, total // 30, 1)
    matrices = [parameter for parameter in net.maps.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in net.parameters() if all(parameter is not m for m in matrices)]
    muon, adamw = Muon(matrices, DECAY), torch.optim.AdamW(others, lr, weight_decay=DECAY, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        adamw, lr, total_steps=total, pct_start=WARM_UP, cycle_momentum=False
    )
    columns = [column for column, a in enumerate(schema) if a.name in over] or list(range(len(schema)))
    positions = (np.arange(step * batch, (step + 1) * batch) for step in range(total))

    began, cpu = time.monotonic(), time.process_time()
    best, best_loss, since, steps = net.state_dict(), float("inf"), 0, 0
    with cli.progress_bar("learning to judge") as report:
        for step, read in enumerate(prefetch(reader.read, positions, 4), start=1):
            images = augment(to_signal(read.images).to(device), random)
            labels = torch.from_numpy(seen(schema, read.labels)).to(device)
            loss = loss_of(schema, net(images), labels)
            adamw.zero_grad()
            loss.backward()
            muon.lr = MUON * float(schedule.get_last_lr()[0])
            muon.step()
            adamw.step()
            schedule.step()
            report(step * batch, total * batch)
            if step % between and step != total:
                continue
            losses_A = _held_out_losses(net, schema, real.images, real.labels)
            held_out_loss = float(losses_A[columns].sum())
            since += 1
            if held_out_loss < best_loss:
                best_loss, best, since, steps = held_out_loss, copy.deepcopy(net.state_dict()), 0, step
            if since >= PATIENCE:
                break
    reader.close()
    net.load_state_dict(best)
    net.eval()

    read_NA = Judge(net, schema, {}).read(real.images).labels_NA
    scores, of_headline = (compare(schema, read_NA, real.labels, names) for names in (None, over))
    accuracy = {name: share.as_dict() for name, share in scores.shares.items()}
    # Of an attribute with one variant there is nothing to read.
    readable = [
        a.name for a in schema if a.variants > 1 and scores.shares[a.name].share >= READABLE
    ]  # not of one that no image showed, whose share is nan
    record = {
        "fingerprint": reader.fingerprint,
        "schema": AttributeRecord.of(schema),
        "size": reader.size,
        "width": width,
        "features": features,
        "parameters": sum(p.numel() for p in net.parameters()),
        "trained_on": steps * batch,
        "validated_on": len(real.images),
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "seed": seed,
        "code": code_version(),
        "epochs": epochs,
        "headline": over,
        "readable": readable,
        "mean": scores.mean.as_dict(),
        "headline_mean": of_headline.mean.as_dict(),
        "accuracy": accuracy,
        "confusion": {
            a.name: confusion(read_NA[:, i], real.labels[:, i], scores.counted_NA[:, i], a.variants)
            for i, a in enumerate(schema)
            if a.variants <= CONFUSED
        },
    }
    return net, record


def augment(x_BCHW: Tensor, random: np.random.Generator) -> Tensor:
    """Moved by a pixel at most, noisy and, half the time, softened: as generated images may be.

    Every batch moves and softens as one; the noise differs from image to image. Colours and sizes stay, for
    they are what is to be read.
    """
    size = x_BCHW.shape[-1]
    if size >= 16:
        y, x = random.integers(0, 3, 2)
        x_BCHW = F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate")[..., y : y + size, x : x + size]
        if random.random() < 0.5:
            share = random.uniform(0, 0.3)
            padded = F.pad(x_BCHW, (1, 1, 1, 1), mode="replicate")
            x_BCHW = torch.lerp(x_BCHW, F.avg_pool2d(padded, 3, stride=1), share)
    sigma_B111 = NOISE * torch.rand(len(x_BCHW), 1, 1, 1, device=x_BCHW.device)
    return x_BCHW + sigma_B111 * torch.randn_like(x_BCHW)


def loss_of(schema: Sequence[Attribute], logits_BV: Tensor, labels_BA: Tensor) -> Tensor:
    """Cross-entropy, summed over the attributes: of each the mean over the samples of which it is known."""
    loss_A, known_A = _losses_of(schema, logits_BV, labels_BA)
    return (loss_A / known_A.clamp(min=1)).sum()


def _losses_of(schema: Sequence[Attribute], logits_BV: Tensor, labels_BA: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each attribute, summed over the samples of which it is known, and their number."""
    parts = [
        F.cross_entropy(part, labels_BA[:, i], ignore_index=UNKNOWN, reduction="sum")
        for i, part in enumerate(split(schema, logits_BV))
    ]
    return torch.stack(parts), (labels_BA != UNKNOWN).sum(0)


def seen(schema: Sequence[Attribute], labels_NA: NDArray[np.int64]) -> NDArray[np.int64]:
    """Labels [N, A] with UNKNOWN for what an image does not show: it would teach noise."""
    return np.where(visible(schema, labels_NA), labels_NA, UNKNOWN)


def _held_out_losses(
    net: JudgeNet,
    schema: Sequence[Attribute],
    images_NHWC: NDArray[np.uint8],
    labels_NA: NDArray[np.int64],
) -> Tensor:
    """Of each attribute the mean over the images that show it: fp64 [A]."""
    device = next(net.parameters()).device
    net.eval()
    loss_A, known_A = torch.zeros(len(schema), dtype=torch.float64), torch.zeros(len(schema))
    with torch.inference_mode():
        for first in range(0, len(images_NHWC), READ_BATCH):
            images = to_signal(images_NHWC[first : first + READ_BATCH]).to(device)
            labels_BA = seen(schema, labels_NA[first : first + READ_BATCH])
            labels = torch.from_numpy(labels_BA).to(device)
            batch_loss_A, batch_known_A = _losses_of(schema, net(images), labels)
            loss_A += batch_loss_A.cpu()
            known_A += batch_known_A.cpu()
    net.train()
    return loss_A / known_A.clamp(min=1)


def confusion(
    read_N: NDArray[np.int64], labels_N: NDArray[np.int64], counted_N: NDArray[np.bool_], variants: int
) -> list[list[int]]:
    """How often variant i (row) was read as j (column), where it could be seen: [variants][variants]."""
    flat = labels_N[counted_N] * variants + read_N[counted_N]
    counts: list[list[int]] = np.bincount(flat, minlength=variants**2).reshape(variants, variants).tolist()
    return counts


def show(record: dict[str, Any]) -> None:
    """The judge's accuracy as a table."""
    headings = ("attribute", "right", "95 % interval", "chance", "in the headline")
    table = TextTable(f"The judge on {record['validated_on']} held-out images", *headings)
    for attribute in record["schema"]:
        row = record["accuracy"][attribute["name"]]
        table.add_row(
            attribute["name"],
            percent(row["share"]),
            f"{percent(row['low'])} to {percent(row['high'])}" if row["count"] else "no image shows it",
            percent(1 / attribute["variants"]),
            "yes" if attribute["name"] in record["headline"] else "no",
        )
    table.print()
    schema = [Attribute(a["name"], a["variants"]) for a in record["schema"]]
    mean, over_all = (percent(record[key]["mean"], 2) for key in ("headline_mean", "mean"))
    say(
        f"headline, {title(record['headline'], schema)}: {mean}; mean over all {over_all}; "
        f"{record['trained_on']:,} images seen, {record['seconds']:.0f} s, "
        f"{record['cpu_seconds']:.0f} CPU-seconds"
    )
    if line := refusal(record["headline"], record["accuracy"], record["epochs"]):
        say(f"warning: {line}", error=True)
