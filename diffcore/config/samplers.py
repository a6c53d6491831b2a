"""The samplers by name, as config, help and sweeps know them; their equations: ``diffusion/samplers.py``.

Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal


@dataclass(frozen=True)
class SamplerEntry:
    """What a setting of sampling means to one sampler."""

    title: str
    takes_steps: bool = True
    """Whether ``steps`` says how many; else it walks over all timesteps."""
    takes_eta: bool = False
    """Whether ``eta`` says how much fresh noise it adds."""
    stochastic: bool = False
    """Whether it adds fresh noise by itself."""


SAMPLERS: dict[str, SamplerEntry] = {
    "ddim": SamplerEntry("DDIM", takes_eta=True),
    "ddpm": SamplerEntry("DDPM", takes_steps=False, stochastic=True),
    "dpm++": SamplerEntry("DPM-Solver++ 2M"),
    "dpm++sde": SamplerEntry("SDE-DPM-Solver++ 2M", stochastic=True),
    "heun": SamplerEntry("Heun"),
    "unipc": SamplerEntry("UniPC"),
}
NAMES = ", ".join(SAMPLERS)
"""For help texts."""

if TYPE_CHECKING:
    SamplerName = str
else:
    SamplerName = Literal[tuple(SAMPLERS)]


def shown_steps(sampler: str, steps: int) -> int | str:
    """How many steps a figure was drawn with, for people: a number, or "all"."""
    return steps if SAMPLERS[sampler].takes_steps else "all"
