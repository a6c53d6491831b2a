"""Do a run's samples have the face and hair colour that was asked for? For stand-in avatars only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diffbase import cli
from diffbase.cli import InputError
from diffbase.files import write_json
from diffcore.config.tree import Sampling
from diffcore.runs.data import first_samples
from diffcore.runs.draw import choose_labels
from diffcore.runs.model import TrainedModel
from shards.schema import CARTOON_SET
from shards.standin.colors import agreement


def check(run: Path, model: TrainedModel) -> None:
    """InputError where the palette rule cannot read the run's images."""
    if model.schema != CARTOON_SET:
        raise InputError(f"{run}: the palette rule reads avatars; this run's labels are others")


def measure(out: Path, model: TrainedModel, sampling: Sampling, samples: int, seed: int) -> dict[str, Any]:
    """Agreement by attribute, beside real images and shuffled labels; written to colors.json in ``out``."""
    labels_BA = choose_labels(model.schema, {}, seed, samples)
    with cli.progress_bar("drawing") as report:
        images = model.draw(labels_BA, sampling, seed, report=lambda done: report(done, samples))
    drawn = agreement(images, labels_BA.numpy())
    real_batch = first_samples(model.config, "train", samples)
    real = agreement(real_batch.images, real_batch.labels)
    result = {
        name: {
            "asked": drawn[name],
            "samples": int(drawn[f"{name}_count"]),
            "real_images": real[name],
            "shuffled_wishes": drawn[f"{name}_shuffled"],
        }
        for name in ("hair_color", "face_color")
    }
    settings = sampling.model_dump(include={"guidance", "steps", "sampler"})
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "colors.json", {"step": model.step, "seed": seed, **settings, "agreement": result})
    return result
