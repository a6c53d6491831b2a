"""Adam, AdamW and Muon as the engine steps with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from diffcore.config.tree import Config
from diffcore.engine.orthogonal.muon import Muon


class _Skipping(torch.optim.Optimizer):
    """An optimizer whose next steps are left out while ``overflow`` is set, as DeepSpeed's own do."""

    overflow = False

    def step(self, closure: Any = None) -> Any:
        return None if self.overflow else super().step(closure)


class Adam(_Skipping, torch.optim.Adam):
    """torch's Adam that leaves steps out while ``overflow`` is set."""


class AdamW(_Skipping, torch.optim.AdamW):
    """torch's AdamW that leaves steps out while ``overflow`` is set."""


# Under ZeRO-1 to 3 DeepSpeed leaves steps out itself, and warns of classes that it does not know.
PARTITIONED: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "muon": Muon,
}
WHOLE: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": Adam, "adamw": AdamW, "muon": Muon}


def build_optimizer(config: Config, network: nn.Module) -> torch.optim.Optimizer:
    """Adam or AdamW as the config says, in PyTorch's fused form (one kernel per group), or Muon.

    Muon has to be told where its matrices lie (``Muon.bind``).
    """
    c = config.optimizer
    own: dict[str, Any] = {"fused": True}
    if c.kind == "muon":
        own = {"momentum": c.momentum, "ns_steps": c.ns_steps}
    return (PARTITIONED if config.engine.zero else WHOLE)[c.kind](
        network.parameters(), lr=c.lr, betas=c.betas, eps=c.eps, weight_decay=c.weight_decay, **own
    )
