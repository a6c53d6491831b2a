"""A run folder in a moment: a small network's random weights as a step's checkpoint, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from diffcore import models
from diffcore.config import configure
from diffcore.engine.ranks import World
from diffcore.runs import checkpoint, saver
from diffcore.runs.run_folder import AttributeRecord
from diffcore.runs.stored.record import KINDS, State
from shards.schema import CARTOON_SET, Attribute

CONFIG = """
run: {run}
data: {{path: nowhere}}
model: {{kind: avatar, channels: [8, 8], blocks: 1, attention_levels: [1], heads: 2, tau_tokens: 1}}
diffusion: {{timesteps: 50}}
batch: {{size: 4}}
train: {{steps: 10, best: validation/loss}}
sampling: {{count: 4, steps: 3}}
"""


def write(
    run: Path,
    *steps: int,
    schema: Sequence[Attribute] = tuple(CARTOON_SET),
    size: int = 8,
    best: int = 0,
    fingerprint: str = "0" * 64,
) -> Path:
    """``run`` with a checkpoint for each of ``steps``, other weights in each; EMA and raw ones differ."""
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(CONFIG.format(run=run))
    config = configure.load(run / "config.yaml")
    for step in steps:
        torch.manual_seed(step)
        named = dict(models.build(config.model, schema, size).named_parameters())
        tensors = {
            f"{kind}/{name}": 0.1 * torch.randn(parameter.numel())
            for kind in KINDS
            for name, parameter in named.items()
        }
        world = World(0, 1, 0, torch.device("cpu"))
        manifest = saver.write_shard(saver.temporary_of(run, step), world, tensors, dict.fromkeys(tensors, 0))
        data = {"fingerprint": fingerprint, "size": size, "schema": AttributeRecord.of(schema)}
        shapes = {name: list(parameter.shape) for name, parameter in named.items()}
        saver.finish(run, State(step, 4 * step, step, {}, data, 1, 1, "fp32", "unknown", shapes), manifest)
    if best:
        (checkpoint.folder_of(run) / "best.json").write_text(f'{{"step": {best}}}')
    return run
