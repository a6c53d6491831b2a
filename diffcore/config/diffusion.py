"""The config's section on noise: schedule, target, weight of the levels, and what is drawn for a sample."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from diffcore.config.section import Section

FIRST_DRAWS, NEWEST_DRAWS = 1, 2
"""Versions of the draws (diffusion/randomness.py): of runs whose record names none, and of new runs."""


class Diffusion(Section):
    """The noise schedule, what the network predicts and how its error is weighted."""

    schedule: Literal["linear", "cosine", "sigmoid", "flow", "edm"] = "linear"
    """Noise schedule: linear betas (Ho et al. 2020), cosine (Nichol & Dhariwal 2021) or sigmoid betas; flow:
    a straight line from image to noise (Lipman et al. 2023); edm: the levels of Karras et al. 2022, eq. 5."""
    timesteps: int = Field(default=1000, ge=2, le=1_000_000)
    """T, the number of noise levels."""
    beta_start: float = Field(default=1e-4, gt=0, lt=1)
    """First beta of the linear schedule."""
    beta_end: float = Field(default=0.02, gt=0, lt=1)
    """Last beta of the linear schedule."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that its last level is pure noise (Lin et al. 2024); not for target eps."""
    shift: float = Field(default=1.0, gt=0, le=1e4)
    """Factor on noise over signal at every level: side / 64 for images larger than those that the schedule is
    made for (Hoogeboom et al. 2023; of schedule flow it is eq. 23 of Esser et al. 2024)."""
    pixels: Literal["symmetric", "unit"] = "symmetric"
    """Range that the images have for the network: [-1, 1], or [0, 1], which learns far slower."""
    input_scale: float = Field(default=1.0, gt=0)
    """Factor b on the images: moves logSNR by 2 log b with the schedule fixed (Chen 2023)."""
    target: Literal["eps", "v", "x0", "flow", "edm"] = "eps"
    """What the network predicts: the noise, v (Salimans & Ho 2022), the image, noise - image (flow matching;
    Liu et al. 2023), or what Karras et al. 2022, table 1, have it predict (edm)."""
    sigma_data: float = Field(default=0.5, gt=0)
    """Standard deviation of the pixels, times input_scale, that target edm assumes."""
    loss_weight: Literal["uniform", "min_snr", "sigmoid"] = "uniform"
    """Weight of the levels in the loss: all alike, min-SNR-5 (Hang et al. 2023), or sigmoid(bias - logSNR) of
    eps's error at each logSNR (Kingma & Gao 2023), whatever the target and the schedule; a timestep_density
    other than uniform comes on top of each."""
    sigmoid_bias: float = Field(default=2.0, ge=-20, le=20)
    """Bias of loss weight sigmoid: above this logSNR it falls."""
    timestep_density: Literal["uniform", "log_normal"] = "uniform"
    """How a sample's level is drawn: all alike, or log(noise / signal) normal, which is EDM's sigma
    (Karras et al. 2022: mean -1.2, std 1.2) and the logit-normal time of flows (Esser et al. 2024: 0, 1)."""
    timestep_mean: float = Field(default=0.0, ge=-20, le=20)
    """Mean of log(noise / signal) of density log_normal."""
    timestep_std: float = Field(default=1.0, gt=0, le=20)
    """Its standard deviation."""
    timestep_stratified: bool = False
    """Spread each step's levels evenly over their density, by one random offset (Kingma et al. 2021)."""
    label_dropout: float = Field(default=0.1, ge=0, le=1)
    """Share of the samples whose labels are dropped, for classifier-free guidance (Ho & Salimans 2022)."""
    draws: int | None = Field(default=None, ge=FIRST_DRAWS, le=NEWEST_DRAWS)
    """Version of noise, timesteps and label drops: 1 drawn by NumPy on the CPU, 2 by Philox on the device;
    None: that of the run that is resumed, and 2 for a new one."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.beta_start > self.beta_end:
            raise ValueError(f"beta_start {self.beta_start} is above beta_end {self.beta_end}")
        if self.target == "eps":
            if self.zero_terminal_snr:
                raise ValueError(
                    "zero_terminal_snr needs target v, x0, flow or edm: pure noise says nothing of the image"
                )
            if self.schedule == "flow":
                raise ValueError(
                    "schedule flow needs target flow, v, x0 or edm: it ends in pure noise, "
                    "which says nothing of the image"
                )
        if self.draws == FIRST_DRAWS and (self.timestep_density != "uniform" or self.timestep_stratified):
            raise ValueError(
                f"draws {FIRST_DRAWS} has only uniform timesteps: timestep_density log_normal "
                f"and timestep_stratified need draws {NEWEST_DRAWS}"
            )
        return self
