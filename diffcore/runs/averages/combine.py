"""Averages of any width, made of the snapshots of a run by least squares over their profiles.

Karras et al. 2024 (arXiv 2312.02696), section 3.2 and appendix C; profiles: engine/ema.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from torch import Tensor

from diffbase.cli import InputError
from diffcore.config.tree import Config
from diffcore.engine.ema import exponent_of, kind_of
from diffcore.runs.averages.snapshots import folder_of, snapshots
from diffcore.runs.tensors import load_tensors

LEAST, MOST = 0.005, 0.28
"""Widths that can be asked for."""
NEAR = 0.1
"""Most that a profile may differ from the one that was asked for, relative to it."""
Profile = tuple[float, int]
"""(exponent, steps)."""


def inner(a: Profile, b: Profile) -> float:
    """The integral of the product of two profiles."""
    (g, t), (h, u) = (a, b) if a[1] <= b[1] else (b, a)
    return float((g + 1) * (h + 1) / (g + h + 1) * (t / u) ** h / u)


def combination(kept: Sequence[Profile], wanted: Profile) -> tuple[NDArray[np.float64], float]:
    """Factors, of sum 1, for the averages in ``kept`` that come nearest to ``wanted``, and how near that is.

    The second: the norm of the difference of the profiles over that of ``wanted``. Sum 1, so that weights
    that do not change stay what they are.
    """
    norms = np.array([inner(profile, profile) for profile in kept]) ** 0.5
    whole = inner(wanted, wanted)
    products = np.array([[inner(a, b) for b in kept] for a in kept]) / np.outer(norms, norms)
    aims = np.array([inner(profile, wanted) for profile in kept]) / (norms * whole**0.5)
    # Lagrange: the last row has the factors, which are x / norm, add up to 1.
    sums = whole**0.5 / norms
    system = np.block([[products, sums[:, None]], [sums[None, :], np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(aims, 1.0), rcond=1e-12)[0][:-1]
    left = float(1 - 2 * aims @ x + x @ products @ x)
    return x * sums, max(0.0, left) ** 0.5


def average(run: Path, config: Config, sigma_rel: float, step: int) -> tuple[dict[str, Tensor], float]:
    """The average of width ``sigma_rel`` after ``step``: fp32 by name, CPU; and ``combination``'s distance.

    InputError where the run kept no snapshots, none from which such an average could be made, or a damaged
    one.
    """
    if not LEAST <= sigma_rel <= MOST:
        raise InputError(f"sigma_rel {sigma_rel:g}: allowed are {LEAST:g} to {MOST:g}")
    if not config.ema.posthoc:
        raise InputError(f"{run}: no averages were kept beside (ema.posthoc)")
    files = {at: path for at, path in snapshots(run).items() if at <= step}
    if not files:
        raise InputError(f"{folder_of(run)}: no snapshot of step {step} or before")
    kept: list[tuple[str, int]] = [(kind_of(sigma), at) for at in files for sigma in config.ema.posthoc]
    profiles: list[Profile] = [(exponent_of(sigma), at) for at in files for sigma in config.ema.posthoc]
    factors, distance = combination(profiles, (exponent_of(sigma_rel), step))
    if distance > NEAR:
        raise InputError(
            f"{run}: its {len(files)} snapshots give no average of sigma_rel {sigma_rel:g} at step {step} "
            f"(the nearest differs by {distance:.0%}); try others, or a step near {max(files)}"
        )
    shares: Mapping[tuple[str, int], float] = dict(zip(kept, factors, strict=True))
    result: dict[str, Tensor] = {}
    for at, path in files.items():
        for key, tensor in _read(path).items():
            sigma, _, name = key.partition("/")
            share = shares.get((kind_of(float(sigma)), at))
            if share is not None:
                part = tensor.to(torch.float64) * share
                result[name] = result[name] + part if name in result else part
    return {name: tensor.float() for name, tensor in result.items()}, distance


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path)
    except SafetensorError as error:
        raise InputError(f"{path}: not a whole snapshot of averages: {error}") from error
