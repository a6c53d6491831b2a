"""What chaos.py sees of a training, whoever runs it: which process had which weights and samples.

Each forward pass of the network while training leaves a line in the folder that ``$CHAOS_TRACE`` names: time,
rank, a digest of the weights and the samples' labels, which differ between samples. Each step of the
optimizer leaves the digest of what it made. So it can be followed where a process took up, without believing
any contender's own books (``chaos_lineage.py``).

A forward pass also waits as many seconds as the file ``pace`` there says, so that a small network trains long
enough to be hurt, for all alike.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from torch import Tensor, nn, uint8
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

NETWORK = "AvatarUNet"
"""The class of the network that every contender trains (diffcore/models/avatar.py)."""


def install() -> None:
    """Have every later forward pass of the network, and step of its optimizer, leave its line."""
    folder = Path(os.environ["CHAOS_TRACE"])
    path = folder / f"{os.getpid()}-{time.time_ns()}.jsonl"
    networks: list[nn.Module] = []

    def write(network: nn.Module, samples: list[str]) -> None:
        line = {
            "time": time.time(),
            "pid": os.getpid(),
            "rank": int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or 0),
            "weights": digest_of(network),
            "samples": samples,
        }
        with path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def passing(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if type(module).__name__ != NETWORK or not module.training:
            return
        labels: Tensor = inputs[2]
        if isinstance(labels, FakeTensor):  # diffcore counts FLOPs so
            return
        networks[:] = [module]
        write(module, [hashlib.sha256(row.numpy()).hexdigest()[:12] for row in labels])
        time.sleep(float((folder / "pace").read_text()))

    def stepped(optimizer: Optimizer, *_: Any) -> None:
        for network in networks:
            write(network, [])

    register_module_forward_pre_hook(passing)
    register_optimizer_step_post_hook(stepped)


def digest_of(network: nn.Module) -> str:
    """Of the first few parameters: a step changes them all."""
    digest = hashlib.sha256()
    for parameter in list(network.parameters())[:3]:
        digest.update(parameter.detach().contiguous().view(uint8).numpy())
    return digest.hexdigest()[:16]
