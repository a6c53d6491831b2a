"""What is planned of somebody's network: all that its memory depends on, checked once."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from diffbase.cli import InputError

Inputs = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments of a forward call."""

STRATEGIES = ("plain", "ddp", "fsdp2", "zero0", "zero1", "zero2", "zero3")
PRECISIONS = {
    "fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "pure-bf16": torch.bfloat16,
}  # fmt: skip
"""What forward and backward compute in."""
OFFLOADS = {"none": STRATEGIES, "optimizer": ("zero1", "zero2", "zero3"), "parameters": ("zero3",)}
"""What may lie on the host, and under which strategies."""
LIMITS = {"micro": 2**20, "accumulation": 2**20, "world": 2**20}


@dataclass(frozen=True)
class Job:
    """One way of training one network."""

    factory: Callable[[], nn.Module]
    """Makes the network; called under fake tensors, so that it costs no memory."""
    batch: Callable[[int], Inputs]
    """Arguments of the forward call for so many samples; called under fake tensors too."""
    loss: Callable[[Any, Inputs], Tensor]
    """Of what forward returned and its arguments: a scalar."""
    optimizer: Callable[[Any], Any]
    """Makes the optimizer of an iterable of parameters."""
    strategy: str = "plain"
    precision: str = "fp32"
    checkpointing: bool | Callable[[nn.Module], Any] = False
    """True: as the library switches it on; a function is called with the network."""
    micro: int = 1
    accumulation: int = 1
    world: int = 1
    rank: int = 0
    offload: str = "none"
    ema: bool = False
    """An fp32 average of the trainable weights beside them."""
    reshard: bool | None = None
    """FSDP2 frees gathered weights after forward (None: those of blocks, not those of the whole's own)."""
    blocks: Callable[[nn.Module], list[nn.Module]] | None = None
    """FSDP2: modules that are groups of their own beside the whole (None: members of the outermost lists)."""
    policy: Any = None
    """FSDP2: a ``MixedPrecisionPolicy`` (None: gathered and computed in ``precision``, reduced in fp32)."""
    bucket_view: bool = False
    """DDP: ``gradient_as_bucket_view``."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """ZeRO: DeepSpeed's JSON; what is not in it are DeepSpeed's own defaults."""
    cuda: bool = True
    """Whether it is to be as on a GPU; else as on a CPU."""
    gloo: bool = True
    """On a CPU: collectives are gloo's, which work on copies."""
    name: str = "network"
    chance: Any = field(default_factory=contextlib.nullcontext)
    """What decides where chance does (``building.Chance``)."""

    def __post_init__(self) -> None:
        _one_of("strategy", self.strategy, STRATEGIES)
        _one_of("precision", self.precision, tuple(PRECISIONS))
        _one_of("offload", self.offload, tuple(OFFLOADS))
        if self.strategy not in OFFLOADS[self.offload]:
            allowed = ", ".join(OFFLOADS[self.offload])
            raise InputError(f"offload {self.offload}: goes with strategy {allowed}, not {self.strategy}")
        for name, most in LIMITS.items():
            if not 1 <= getattr(self, name) <= most:
                raise InputError(f"{name} {getattr(self, name)}: allowed are 1 to {most}")
        if not 0 <= self.rank < self.world:
            raise InputError(f"rank {self.rank} is not one of {self.world} ranks")
        if self.strategy == "plain" and self.world > 1:
            raise InputError(
                f"strategy plain is of one rank, not {self.world}: allowed are {', '.join(STRATEGIES[1:])}"
            )

    @property
    def stage(self) -> int | None:
        """The ZeRO stage, None where it is not DeepSpeed that trains."""
        return int(self.strategy[4:]) if self.strategy.startswith("zero") else None

    @property
    def autocast(self) -> torch.dtype | None:
        """Of torch.autocast, None where there is none."""
        whole = self.strategy in ("fsdp2", "zero1", "zero2", "zero3")
        return None if whole or self.precision in ("fp32", "pure-bf16") else PRECISIONS[self.precision]

    @property
    def weights(self) -> torch.dtype | None:
        """Of the module's weights, None where they stay as they are made."""
        lower = self.precision == "pure-bf16" or (self.stage or 0) > 0
        return PRECISIONS[self.precision] if lower and self.precision != "fp32" else None


def _one_of(field_: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{field_} {value!r:.60}: allowed are {', '.join(allowed)}")
