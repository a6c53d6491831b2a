"""Distances between two sets of images, by their features: Frechet and kernel.

torchmetrics does the sums. Its extractor may be any module; here it is the identity, because the judge has
made the features already. Both are small where the sets look alike to the judge, in units of its own, so they
compare runs on the same data and mean something beside the same distance between two sets of real images.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffbase.cli import InputError
from diffbase.extras import extra

SUBSETS, SUBSET = 50, 500
"""Kernel distance: the mean over this many random subsets of at most this many images."""


def require() -> None:
    """InputError where torchmetrics is missing: said before anything is drawn."""
    with extra("evaluate", "measuring distances"):
        import torchmetrics  # noqa: F401


class _AsTheyAre(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.num_features = features

    def forward(self, features_NF: Tensor) -> Tensor:
        return features_NF


def frechet(real_NF: NDArray[np.floating], drawn_NF: NDArray[np.floating]) -> float:
    """Frechet distance of the Gaussians with the sets' means and covariances (Heusel et al. 2017, eq. 6).

    Of few images it is too large: compare only figures of equally many. ValueError for fewer than two.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if min(len(real_NF), len(drawn_NF)) < 2:
        raise ValueError("a Frechet distance needs two images or more on both sides")
    # Only rank 0 holds the features, so nothing is to be added up over the ranks.
    metric = FrechetInceptionDistance(_AsTheyAre(real_NF.shape[1]), sync_on_compute=False)
    metric.update(torch.from_numpy(real_NF).double(), real=True)
    metric.update(torch.from_numpy(drawn_NF).double(), real=False)
    return float(metric.compute())


def kernel(real_NF: NDArray[np.floating], drawn_NF: NDArray[np.floating], seed: int = 0) -> float:
    """Kernel distance: squared MMD with a cubic kernel (Binkowski et al. 2018), unbiased, may be negative."""
    from torchmetrics.image.kid import KernelInceptionDistance

    size = min(SUBSET, len(real_NF), len(drawn_NF))
    if size < 2:
        raise ValueError("a kernel distance needs two images or more on both sides")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")  # that it keeps the features
        torch.manual_seed(seed)
        metric = KernelInceptionDistance(
            _AsTheyAre(real_NF.shape[1]), subsets=SUBSETS, subset_size=size, sync_on_compute=False
        )
        metric.update(torch.from_numpy(real_NF).double(), real=True)
        metric.update(torch.from_numpy(drawn_NF).double(), real=False)
        mean, _ = metric.compute()
    return float(mean)


def inception_frechet(
    real_NHWC: NDArray[np.uint8], drawn_NHWC: NDArray[np.uint8], weights: Path, batch: int = 64
) -> float:
    """The usual Frechet distance, on Inception's features, with weights that are at hand.

    ``weights`` is torch-fidelity's file; InputError if it or that package is missing.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance

    if not weights.is_file():
        raise InputError(f"--inception {weights}: no such file")
    try:
        metric = FrechetInceptionDistance(
            2048, feature_extractor_weights_path=str(weights), sync_on_compute=False
        )
    except ModuleNotFoundError as error:
        raise InputError(f"--inception: needs torch-fidelity (pip install torch-fidelity): {error}") from None
    for images, real in ((real_NHWC, True), (drawn_NHWC, False)):
        for first in range(0, len(images), batch):
            metric.update(torch.from_numpy(images[first : first + batch]).permute(0, 3, 1, 2), real=real)
    return float(metric.compute())
