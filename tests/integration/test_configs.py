"""Every config of configs/ steps at full size, and an eighth as wide it learns on two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensorMode

from diffcore import models
from diffcore.config import configure
from shards import pack
from tests.integration.conftest import REPOSITORY, losses_of, train_all
from tests.unit.diffcore.models.test_models import batch, schema_of

NAMES = sorted(path.stem for path in (REPOSITORY / "configs").glob("*.yaml"))
STEPS = {"avatar": 32, "ddpm": 32, "diffusers": 12}
# An eighth of the width (or the least that the architecture allows), of the heads and of Tau.
NARROW: dict[str, dict[str, Any]] = {
    "avatar": {"channels": [16, 32, 64, 128], "tau_tokens": 2, "attention_levels": [1, 2, 3], "patch": 1},
    "ddpm": {"width": 8},
    "diffusers": {"block_out_channels": [32, 32, 64], "cross_attention_dim": 160, "tau_tokens": 32},
}
REPORTED = ("avatar", "ddpm-cifar10", "diffusers-32")
"""One of each network writes the memory report too, which takes longer than this training."""


def plain_pictures(folder: Path, classes: tuple[str, ...], out: Path) -> Path:
    """Pictures of one colour, which is its class's, packed."""
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for i in range(12):
            pixels = np.full((16, 16, 3), (80 * number + 10, 40, 200 - 5 * i), np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i}.png")
    pack.main([str(folder), "--out", str(out), "--size", "16", "--jobs", "1", "--val", "0.1"])
    return out


@pytest.mark.parametrize("name", NAMES)
def test_a_full_size_network_steps_on_fake_tensors(name: str) -> None:
    c = configure.load(REPOSITORY / "configs" / f"{name}.yaml")
    with FakeTensorMode():
        network = models.build(c.model, schema_of(c), 64)
        optimizer = torch.optim.AdamW(network.parameters())
        out = network(*batch(schema_of(c), 64))
        assert out.shape == (2, 3, 64, 64)
        out.square().mean().backward()
        optimizer.step()


def test_every_config_learns_on_two_processes(packed: Path, tmp_path: Path) -> None:
    data = {
        "cifar10": plain_pictures(tmp_path / "a", ("cats", "dogs", "eels"), tmp_path / "classes"),
        "landscapes": plain_pictures(tmp_path / "b", ("",), tmp_path / "unlabelled"),
    }
    paths, steps = [], {}
    for name in NAMES:
        path = REPOSITORY / "configs" / f"{name}.yaml"
        c = configure.load(path)
        steps[name] = STEPS[c.model.kind]
        heads = {"attention_head_dim": c.model.attention_head_dim // 8} if c.model.kind == "diffusers" else {}
        small = configure.load(
            path,
            {
                "run": str(tmp_path / name),
                "data": {"path": str(data.get(c.data.path.name, packed))},
                "model": NARROW[c.model.kind] | heads,
                "optimizer": {"lr": 2e-3},
                "lr_schedule": {"warmup_samples": 0},
                "batch": {"size": 16, "micro": None},
                "train": {"steps": steps[name], "log_every": 1},
                "sampling": {"count": 2, "steps": 2},
                "memory": {"trace": name in REPORTED},
            },
        )
        paths.append(tmp_path / f"{name}.yaml")
        paths[-1].write_text(small.to_yaml())

    train_all(list(map(str, paths)), ranks=2, timeout=500)
    for name in NAMES:
        losses = losses_of(tmp_path / name)
        assert len(losses) == steps[name]
        first, last = np.mean(losses[:4]), np.mean(losses[-8:])
        assert last < 0.8 * first, f"{name}: {first:.3f} -> {last:.3f}"
        assert (tmp_path / name / "checkpoints" / f"step-{steps[name]:08d}" / "COMPLETE").exists()
        assert (tmp_path / name / "report.html").exists() == (name in REPORTED)
