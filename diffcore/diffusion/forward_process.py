"""A picture at several noise levels and the schedule's signal-to-noise ratio, as one image."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from torch import Tensor

from diffbase.cli import InputError
from diffbase.page import pictures
from diffcore.diffusion import randomness
from diffcore.diffusion.pixels import to_pixels, to_signal
from diffcore.diffusion.schedule import INVISIBLE_SNR, NoiseSchedule

LEVELS = 12
SIZE = 64
TITLE_HEIGHT = 22
PLOT_HEIGHT = 240
SNR_RANGE = (-6.0, 6.0)  # of log10


def whole(schedule: NoiseSchedule, image: Path) -> np.ndarray:
    """Titles, pictures and curve, one below the other: uint8 [height, width, 3]."""
    strip = forward_process(schedule, read_image(image))
    width = strip.shape[1]
    return np.concatenate([titles(schedule, width), strip, snr_curve(schedule, width)])


def read_image(path: Path) -> np.ndarray:
    """Any picture over white, centre square, uint8 [1, SIZE, SIZE, 3]."""
    try:
        with Image.open(path) as picture:
            rgba = picture.convert("RGBA")
    except UnidentifiedImageError:
        raise InputError(f"{path}: not an image") from None
    edge = min(rgba.size)
    left, top = ((side - edge) // 2 for side in rgba.size)
    square = rgba.crop((left, top, left + edge, top + edge)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    white = Image.new("RGBA", square.size, "white")
    return np.array(Image.alpha_composite(white, square).convert("RGB"))[None]


def shown_levels(schedule: NoiseSchedule) -> Tensor:
    """LEVELS equally spaced levels, the first and the last among them."""
    return torch.linspace(0, schedule.timesteps - 1, LEVELS).round().long()


def titles(schedule: NoiseSchedule, width: int) -> np.ndarray:
    """t and SNR of every picture, to stand above it: uint8 [TITLE_HEIGHT, width, 3]."""
    canvas = Image.new("RGB", (width, TITLE_HEIGHT), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    for i, t in enumerate(shown_levels(schedule).tolist()):
        middle = ((i + 0.5) * width / LEVELS, TITLE_HEIGHT / 2)
        pen.text(middle, f"t = {t}, SNR {schedule.snr[t]:.2g}", "black", font, anchor="mm")
    return np.asarray(canvas)


def forward_process(schedule: NoiseSchedule, image_1HWC: np.ndarray) -> np.ndarray:
    """The picture at LEVELS equally spaced levels with one noise, as a grid: uint8 [height, width, 3]."""
    t_B = shown_levels(schedule)
    x0 = schedule.scale(to_signal(image_1HWC)).expand(LEVELS, -1, -1, -1)
    eps = randomness.normal(0, "sample", [0], x0.shape[1:]).expand_as(x0)
    return pictures.grid(to_pixels(schedule.diffuse(x0, eps, t_B)), columns=LEVELS)


def snr_curve(schedule: NoiseSchedule, width: int) -> np.ndarray:
    """log10 SNR over t, with lines at 1 and at INVISIBLE_SNR: uint8 [PLOT_HEIGHT, width, 3]."""
    canvas = Image.new("RGB", (width, PLOT_HEIGHT), "white")
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(12)
    low, high = SNR_RANGE

    def y(log_snr: float) -> float:
        return (high - min(max(log_snr, low), high)) / (high - low) * (PLOT_HEIGHT - 1)

    left = 40  # of the curve: before it are the numbers of the axis
    invisible = float(np.log10(INVISIBLE_SNR))
    for exponent in range(int(low) + 1, int(high)):
        named = exponent in (0, invisible)
        pen.line([(left, y(exponent)), (width, y(exponent))], fill="#aaaaaa" if named else "#eeeeee")
        if exponent % 2 == 0:
            pen.text((left - 6, y(exponent)), f"{exponent}", "#777777", font, anchor="rm")
    words = f"SNR {INVISIBLE_SNR:g}: below it no image is left"
    pen.text((left + 8, y(invisible) + 3), words, "#777777", font)
    log_snr = torch.log10(schedule.snr.clamp(min=10**low)).tolist()
    step = (width - 1 - left) / (len(log_snr) - 1)
    pen.line([(left + i * step, y(value)) for i, value in enumerate(log_snr)], fill="#c0392b", width=2)
    last = schedule.timesteps - 1
    pen.text((width - 8, 8), f"log10 SNR over t = 0 to {last}", "black", font, anchor="ra")
    return np.asarray(canvas)
