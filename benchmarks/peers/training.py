"""The training of chaos.py's peers: diffcore's network and shards, in the loop of PyTorch's own tutorial.

https://docs.pytorch.org/tutorials/beginner/ddp_series_fault_tolerance.html: a snapshot of weights, optimizer
and epoch at the end of each epoch, by torch.save, loaded at the start if it is there. Noise is drawn from
torch's generator, the order is DistributedSampler's, seeded by the epoch.
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import diffcore
from benchmarks.peers import tracing
from diffcore.config.tree import Config
from diffcore.models import build

SEED = 3
TIMEOUT = datetime.timedelta(seconds=20)
"""Of collectives: what ``guards.hang_seconds`` is for diffcore."""


class Work:
    """Network, data and loss of a config."""

    def __init__(self, path: Path) -> None:
        self.config: Config = diffcore.load_config(path)
        with diffcore.open_shards(str(self.config.data.path), order="sequential", batch_size=8) as reader:
            batches = list(reader.epoch())
            self.schema, self.size = reader.schema, reader.size
        images = torch.cat([torch.from_numpy(batch.images) for batch in batches])
        labels = torch.cat([torch.from_numpy(batch.labels) for batch in batches])
        self.data = TensorDataset(images.permute(0, 3, 1, 2) / 127.5 - 1, labels.long())

    @property
    def epochs(self) -> int:
        return self.config.train.steps * self.config.batch.size // len(self.data)

    def batch(self, world: int) -> int:
        return self.config.batch.size // world

    def network(self) -> nn.Module:
        return build(self.config.model, self.schema, self.size)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.AdamW(network.parameters(), lr=self.config.optimizer.lr, weight_decay=0.01)


def loss_of(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The simple loss (Ho et al. 2020, eq. 14) on the cosine schedule (Nichol & Dhariwal 2021)."""
    t = torch.randint(100, (len(images),))
    noise, alpha = torch.randn_like(images), torch.cos(t / 100 * torch.pi / 2)[:, None, None, None]
    noisy = alpha * images + (1 - alpha**2).sqrt() * noise
    return F.mse_loss(network(noisy, t, labels, torch.ones_like(t, dtype=torch.bool)), noise)


def fit(config: Path, run: Path, alive: Callable[[], None] = lambda: None) -> None:
    """Train in a process group that the environment describes, from the snapshot in ``run`` if there is one.

    ``alive`` is called after each step.
    """
    tracing.install()
    torch.manual_seed(SEED + int(os.environ["RANK"]))
    dist.init_process_group("gloo", timeout=TIMEOUT)
    work, snapshot = Work(config), run / "snapshot.pt"
    sampler = DistributedSampler(work.data, seed=SEED)
    loader = DataLoader(work.data, batch_size=work.batch(dist.get_world_size()), sampler=sampler)
    network = DistributedDataParallel(work.network())
    optimizer = work.optimizer(network)
    first = 0
    if snapshot.exists():
        state = torch.load(snapshot, weights_only=True)
        network.module.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["epochs_run"]
    for epoch in range(first, work.epochs):
        sampler.set_epoch(epoch)
        for images, labels in loader:
            optimizer.zero_grad()
            loss_of(network, images, labels).backward()
            optimizer.step()
            alive()
        if dist.get_rank() == 0:
            state = {"network": network.module.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save(state | {"epochs_run": epoch + 1}, snapshot)
    if dist.get_rank() == 0:
        save_file(network.module.state_dict(), run / "final.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    fit(Path(sys.argv[1]), Path(sys.argv[2]))
