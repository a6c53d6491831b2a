"""python -m diffcore.sample --run RUN --set hair_color=3 --guidance 2 --count 16 --out grid.png

Draws avatars with a run's newest complete checkpoint. What is not set is drawn at random; a JSON beside the
grid says the attributes of every cell. Reads safetensors and YAML only, and needs no DeepSpeed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diffbase import cli
from diffbase.cli import InputError
from diffcore import configure
from diffcore.config import Config, Sampling
from shards.schema import Attribute

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from diffcore.diffusion.schedule import NoiseSchedule

RECOMMENDED = "sampling.json"
"""In the run folder: the settings to sample with by default."""


def draw(
    network: nn.Module,
    schedule: NoiseSchedule,
    labels_BA: Tensor,
    positions: Iterable[int],
    sampling: Sampling,
    *,
    shape: Sequence[int],
    seed: int,
    device: torch.device,
) -> np.ndarray:
    """Images for ``labels``: uint8 [B, H, W, 3].

    Image i depends on its labels, ``seed`` and ``positions[i]``, not on the batch that it is drawn in.
    """
    import torch

    from diffcore.diffusion import randomness
    from diffcore.diffusion.guidance import guided
    from diffcore.diffusion.samplers import SAMPLERS
    from diffcore.pictures import to_pixels

    positions = list(positions)

    def noise(step: int) -> Tensor:
        return randomness.normal(seed, "sample", positions, shape, step).to(device)

    with torch.no_grad():
        denoise = guided(
            network,
            schedule,
            labels_BA.to(device),
            sampling.guidance,
            rescale=sampling.guidance_rescale,
            interval=sampling.guidance_interval,
            clamp=sampling.clamp,
        )
        sampler = SAMPLERS[sampling.sampler]
        # Step 0 of the noise is x_T; the samplers' own steps follow.
        x0 = sampler(denoise, schedule, noise(0), sampling.steps, lambda step: noise(step + 1), sampling.eta)
    return to_pixels(schedule.unscale(x0))


@dataclass(frozen=True)
class TrainedModel:
    """A network with a checkpoint's weights, and what is needed to draw with it."""

    config: Config
    schema: tuple[Attribute, ...]
    size: int
    step: int
    network: nn.Module
    schedule: NoiseSchedule
    device: torch.device
    fingerprint: str
    """Of the shards that it learned from."""

    def draw(
        self,
        labels_BA: Tensor,
        sampling: Sampling,
        seed: int,
        batch: int = 64,
        positions: Sequence[int] | None = None,
    ) -> np.ndarray:
        """Images for ``labels``, ``batch`` at a time: uint8 [B, H, W, 3].

        At ``positions`` of the noise (default 0 .. B - 1).
        """
        import numpy as np

        places = range(len(labels_BA)) if positions is None else positions
        parts = [np.empty((0, self.size, self.size, 3), np.uint8)]
        for first in range(0, len(labels_BA), batch):
            part = labels_BA[first : first + batch]
            shape = (3, self.size, self.size)
            parts.append(
                draw(
                    self.network, self.schedule, part, places[first : first + batch], sampling,
                    shape=shape, seed=seed, device=self.device,
                )
            )  # fmt: skip
        return np.concatenate(parts)


def load_run(run: Path, weights: str = "ema", which: str = "newest") -> TrainedModel:
    """The network of a run with one of its complete checkpoints. InputError where there is none.

    ``weights``: ema, or raw for what the optimizer has. ``which``: newest, best or a step.
    """
    from diffcore import checkpoint, export, models
    from diffcore.diffusion.schedule import NoiseSchedule
    from diffcore.world import one_device

    config = export.config_of(run)
    folder = export.choose(run, which)
    state = checkpoint.read_state(folder)
    schema = tuple(Attribute(a["name"], a["variants"]) for a in state.data["schema"])
    device = one_device()
    network = models.build(config.model, schema, state.data["size"])
    network.load_state_dict(checkpoint.read_weights(folder, {"raw": "weights"}.get(weights, weights)))
    network.to(device).eval().requires_grad_(False)
    schedule = NoiseSchedule.of(config.diffusion)
    return TrainedModel(
        config, schema, state.data["size"], state.step, network, schedule, device, state.data["fingerprint"]
    )


def choose_labels(schema: Sequence[Attribute], wanted: dict[str, int], seed: int, count: int) -> Tensor:
    """Labels [count, A]: ``wanted`` fixed, the rest uniform by (seed, cell)."""
    from diffcore.diffusion import randomness

    labels_BA = randomness.labels(seed, range(count), [a.variants for a in schema])
    for column, attribute in enumerate(schema):
        if attribute.name in wanted:
            labels_BA[:, column] = wanted[attribute.name]
    return labels_BA


def parse_wanted(settings: Sequence[str], schema: Sequence[Attribute]) -> dict[str, int]:
    """``name=value`` strings -> {name: value}. InputError with what is allowed."""
    variants = {a.name: a.variants for a in schema}
    wanted = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        if name not in variants:
            raise InputError(f"--set {setting}: unknown attribute {name!r}; allowed: {', '.join(variants)}")
        if not value.isascii() or not value.isdigit() or int(value) >= variants[name]:
            raise InputError(f"--set {setting}: {name} must be a whole number, 0 to {variants[name] - 1}")
        wanted[name] = int(value)
    return wanted


def sampling_of(config: Config, arguments: argparse.Namespace) -> Sampling:
    """The run's sampling settings, what a sweep recommended over them, and the command line's over both."""
    given = {
        name: value for name in Sampling.model_fields if (value := getattr(arguments, name, None)) is not None
    }
    return configure.replace(config, "sampling", {**recommended(arguments.run, given), **given}).sampling


def recommended(run: Path, given: Mapping[str, object] | None = None) -> dict[str, Any]:
    """Sampler, steps and guidance that ``diffcore.evaluation.sweep`` wrote into the run; empty without.

    Steps are those of its sampler, so they go where another one is ``given``.
    """
    path = run / RECOMMENDED
    if not path.exists():
        return {}
    try:
        tree = json.loads(path.read_text())
        known = {name: tree[name] for name in ("sampler", "steps", "guidance")}
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: not a recommendation ({type(error).__name__}: {error})") from error
    if given and given.get("sampler", known["sampler"]) != known["sampler"]:
        del known["steps"], known["sampler"]
    return known


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed {seed}: allowed are 0 to 2**63 - 1")


def main(argv: Sequence[str] | None = None) -> None:
    parser = cli.Parser(prog="python -m diffcore.sample", description=__doc__.split("\n\n")[1])
    parser.add_argument("--run", type=Path, required=True, help="run folder of diffcore/train.py")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="fix an attribute")
    parser.add_argument("--guidance", type=float, help="guidance scale; 0 unconditional, 1 plain conditional")
    parser.add_argument("--guidance-rescale", type=float, help="share of the contrast given back, 0 to 1")
    parser.add_argument(
        "--guidance-interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
        help="range of t / (T - 1) in which guidance acts",
    )  # fmt: skip
    parser.add_argument("--clamp", action=argparse.BooleanOptionalAction, help="keep x_0 in images' range")
    parser.add_argument("--steps", type=int, help="steps of the sampler")
    parser.add_argument("--sampler", help="ddim, ddpm, dpm++, dpm++sde or heun")
    parser.add_argument("--eta", type=float, help="fresh noise of ddim, 0 to 1")
    parser.add_argument("--seed", type=int, default=0, help="of the noise and the attributes not set")
    parser.add_argument("--count", type=int, help="images")
    parser.add_argument("--weights", choices=("ema", "raw"), default="ema", help="which weights draw")
    parser.add_argument("--checkpoint", default="newest", help="newest, best or a step (default newest)")
    parser.add_argument(
        "--compare",
        action="store_true",
        help="rows of the same labels and noise: raw and EMA weights, each with guidance 1 and as set",
    )
    parser.add_argument("--out", type=Path, required=True, help="the grid, a PNG; .json is put beside it")
    arguments = parser.parse_args(argv)
    if arguments.out.suffix.lower() != ".png":
        raise InputError(f"--out {arguments.out}: the grid is a PNG; give a name that ends in .png")
    if not arguments.out.parent.is_dir():
        raise InputError(f"--out {arguments.out}: folder {arguments.out.parent} does not exist")
    if arguments.out.resolve().parent == arguments.run.resolve():
        raise InputError(
            f"--out {arguments.out}: its JSON could replace one of the run's; use another folder"
        )
    check_seed(arguments.seed)

    import numpy as np

    from diffbase.files import write_atomic
    from diffcore import pictures

    which = arguments.checkpoint
    models = {w: load_run(arguments.run, w, which) for w in ("raw", "ema")} if arguments.compare else {}
    model = models.get(arguments.weights) or load_run(arguments.run, arguments.weights, which)
    sampling = sampling_of(model.config, arguments)
    wanted = parse_wanted(arguments.set, model.schema)
    labels_BA = choose_labels(model.schema, wanted, arguments.seed, sampling.count)
    # With --compare rows of the same labels and noise, without it one grid.
    scales = dict.fromkeys((1.0, sampling.guidance))
    kinds = [(weights, scale) for weights in models for scale in scales]
    columns = sampling.count if kinds else min(8, sampling.count)
    images, cells = [], []
    for weights, scale in kinds or [(arguments.weights, sampling.guidance)]:
        drawn = models.get(weights, model).draw(
            labels_BA, sampling.model_copy(update={"guidance": scale}), arguments.seed
        )
        images.extend(drawn)
        for row in labels_BA.tolist():
            attributes = {a.name: v for a, v in zip(model.schema, row, strict=True)}
            place = {"row": len(cells) // columns, "column": len(cells) % columns}
            cells.append({**place, "weights": weights, "guidance": scale, "attributes": attributes})
    tiled = pictures.grid(np.stack(images), columns)
    if kinds:
        names = [f"{weights}, guidance {scale:g}" for weights, scale in kinds]
        tiled = pictures.with_row_names(tiled, names)
    pictures.save_png(tiled, arguments.out)
    record = {
        "run": str(arguments.run),
        "step": model.step,
        "seed": arguments.seed,
        "set": wanted,
        **sampling.model_dump(mode="json", exclude={"every", "guidance"}),
        "cells": cells,
    }
    write_atomic(arguments.out.with_suffix(".json"), (json.dumps(record, indent=1) + "\n").encode())
    print(f"{arguments.out}: {len(images)} images, step {model.step}")


if __name__ == "__main__":
    cli.run(main)
